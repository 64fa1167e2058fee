"""A network that a function of the user's Python file returns. The file is run, as Python would run it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from roundwise.errors import ModelError


def from_function(file: Path, name: str) -> nn.Module:
    """The model that a function of the user's file returns; or a class, or a finished model."""
    spec = f"{file}:{name}"
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file. Check the path.")
    module = _run_file(file)
    if not hasattr(module, name):
        there = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        near = difflib.get_close_matches(name, there, n=3, cutoff=0.5) or there[:5]
        hint = f"Did you mean {' or '.join(near)}?" if near else "Write a function that returns the model."
        raise ModelError(f"{file} has no function '{name}'. {hint}")
    model = getattr(module, name)
    if not isinstance(model, nn.Module):
        model = _call(model, spec, file)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned a {type(model).__name__}; it must return a torch.nn.Module.")
    return model


def functions_in(path: Path) -> list[str]:
    """Names of the functions and classes that a file defines, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _run_file(file: Path) -> object:
    # Under a name of its own, so that no file replaces a library; registered, because dataclasses and pickles look
    # their module up; with its folder first in the path, as when Python runs the file.
    name = f"roundwise_model_{file.stem}"
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    sys.path.insert(0, str(file.resolve().parent))
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(f"running {file} failed{_place(error, file)}. Mend the file, or give another.") from error
    return module


def _call(function: Any, spec: str, file: Path) -> object:
    if not callable(function):
        raise ModelError(
            f"{spec} is of type {type(function).__name__}, so it cannot be called. Name a function that returns the "
            "model, or the model itself."
        )
    try:
        parameters: Sequence[inspect.Parameter] = list(inspect.signature(function).parameters.values())
    except ValueError:  # written in C, without a signature
        parameters = []
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if required:
        raise ModelError(
            f"{spec} requires arguments ({', '.join(required)}), and the command line has none to give. Write a "
            "function without arguments that calls it as you need it."
        )
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise ModelError(f"calling {spec} failed{_place(error, file)}. Mend the function, or give another.") from error


def _place(error: BaseException, file: Path) -> str:
    """Where in the user's file an error arose, and its message."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == file.resolve()]
    return f" at line {frames[-1].lineno}, `{frames[-1].line}`: {text}" if frames else f": {text}"
