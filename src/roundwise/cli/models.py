"""What MODEL means on the command line.

    torchvision:resnet18        a network of torchvision, with --weights, --pretrained or --random-weights
    timm:mobilenetv2_100        a network of timm, likewise
    path/file.py:function       whatever the function returns; its file is run, as it would be by Python
    path/program.pt2            a program saved with torch.export.save

A name alone never decides where weights come from: a network with random weights quantizes without complaint and is
worth nothing, so they have to be asked for.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import os
import sys
import traceback
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import click
import torch
from torch import nn
from torch.export import ExportedProgram

from roundwise.cli.vision import COLLECTIONS, build, check_name, preprocessing_of, preprocessing_of_module
from roundwise.cli.weights import FromFile, Pretrained, Random, WeightSource, load_weights
from roundwise.errors import FileFormatError, ModelError
from roundwise.evaluation.preprocessing import Preprocessing

FORMS = "torchvision:NAME, timm:NAME, path/file.py:function or path/program.pt2"


@final
@dataclass(frozen=True)
class LoadedModel:
    """A network, ready to run.

    Attributes:
        name: as it was asked for.
        network: in eval mode.
        preprocessing: what the model's own library says its images need, and where; None where nobody says.
        notes: what was done beyond the literal request, one sentence each.
    """

    name: str
    network: nn.Module | ExportedProgram
    preprocessing: tuple[Preprocessing, str] | None = None
    notes: tuple[str, ...] = ()


def load_model(spec: str, source: WeightSource | None = None, num_classes: int | None = None) -> LoadedModel:
    """Find, build and fill the model that `spec` names.

    Args:
        spec: one of the forms above.
        source: where the weights come from; needed for torchvision and timm, optional for functions.
        num_classes: of torchvision's and timm's networks, where it is not their usual one.

    Raises:
        ModelError: there is no such model, the weights are another model's, or the user's code fails.
        FileFormatError: a file is broken or refused.
        click.UsageError: options that contradict each other, or a missing one.
    """
    collection, _, name = spec.partition(":")
    if collection in COLLECTIONS:
        return _from_collection(collection, name, source, num_classes)
    if num_classes is not None:
        raise click.UsageError(f"--num-classes goes with torchvision: and timm: models; '{spec}' has its own.")
    path, _, function = spec.rpartition(":")
    if path.endswith(".py"):
        return _from_function(Path(path), function, source)
    if spec.lower().endswith(".pt2"):
        if source is not None:
            raise click.UsageError("a .pt2 program contains its weights; leave out --weights and the like.")
        return LoadedModel(spec, load_program(Path(spec)))
    raise ModelError(_unknown(spec))


def stated_preprocessing(spec: str) -> tuple[Preprocessing, str]:
    """The preprocessing that torchvision or timm state for a model, without building it.

    Raises:
        ModelError: the model is unknown, or states none.
    """
    collection, _, name = spec.partition(":")
    if collection not in COLLECTIONS:
        raise ModelError(f"'{spec}': only torchvision:NAME and timm:NAME say how their images are prepared.")
    found = preprocessing_of(collection, name)
    if found is None:
        raise ModelError(
            f"'{spec}' states no preprocessing for single images. Give --size, --resize, --mean and --std."
        )
    return found


def load_program(path: Path) -> ExportedProgram:
    """Read a program saved with `torch.export.save`.

    The pickles that such a file may hold are limited to tensors. Its symbolic shapes are still evaluated by PyTorch as
    expressions, so a program from a stranger is not safe to load.

    Raises:
        FileFormatError: the file is missing, broken, refused, or of another version of PyTorch.
    """
    if not path.is_file():
        raise FileFormatError(f"{path}: there is no such file.")
    if not zipfile.is_zipfile(path):
        raise FileFormatError(f"{path} is not a program of torch.export: it is truncated, or something else.")
    try:
        with _tensors_only():
            program = torch.export.load(path)
    except Exception as error:  # the loader raises nearly anything on broken files
        raise FileFormatError(
            f"{path} cannot be loaded as a program of torch.export ({type(error).__name__}: {error}). Files of another "
            f"version of PyTorch than {torch.__version__} may need to be exported anew."
        ) from error
    assert isinstance(program, ExportedProgram)
    return program


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make every `torch.load` refuse pickles that build anything but tensors, also those that ask for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _from_collection(collection: str, name: str, source: WeightSource | None, num_classes: int | None) -> LoadedModel:
    check_name(collection, name)
    spec = f"{collection}:{name}"
    if source is None:
        raise click.UsageError(
            f"{spec} names an architecture. Where are its weights? --weights FILE for your own, --pretrained to "
            f"download {collection}'s, or --random-weights to try things out with an untrained network."
        )
    if num_classes is not None and isinstance(source, Pretrained):
        raise click.UsageError("--pretrained weights come with their own classes; leave out --num-classes.")
    notes: tuple[str, ...] = ()
    with torch.random.fork_rng():
        if isinstance(source, Random):
            torch.manual_seed(source.seed)
            notes = (f"random weights (seed {source.seed}): good for trying out and timing, not for use",)
        model = build(collection, name, pretrained=isinstance(source, Pretrained), num_classes=num_classes)
    if isinstance(source, FromFile):
        notes = load_weights(model, source.path)
    return LoadedModel(spec, model.eval(), preprocessing_of(collection, name), notes)


def _from_function(file: Path, name: str, source: WeightSource | None) -> LoadedModel:
    spec = f"{file}:{name}"
    if isinstance(source, Pretrained | Random):
        raise click.UsageError(f"{spec} builds its own model; --pretrained and --random-weights go with named ones.")
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file.")
    module = _run_file(file)
    if not hasattr(module, name):
        there = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ModelError(f"{file} has no function '{name}'.{_nearest(name, there)}")
    model = getattr(module, name)
    if not isinstance(model, nn.Module):
        model = _call(model, spec, file)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned a {type(model).__name__}; a torch.nn.Module is needed.")
    notes: tuple[str, ...] = ()
    if isinstance(source, FromFile):
        notes = load_weights(model, source.path)
    return LoadedModel(spec, model.eval(), preprocessing_of_module(model), notes)


def _run_file(file: Path) -> object:
    # A name of its own, so that no file can stand in for a library; registered, because dataclasses and pickles look
    # their module up; the folder first in the path, as when Python runs the file.
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
        raise ModelError(f"running {file} failed{_place(error, file)}") from error
    return module


def _call(function: Any, spec: str, file: Path) -> object:
    if not callable(function):
        raise ModelError(f"{spec} is of type {type(function).__name__}, neither a function nor a model.")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # written in C, without a signature
        parameters = []
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if required:
        raise ModelError(
            f"{spec} requires arguments ({', '.join(required)}). Write a function without any into a file of your own "
            "that calls it as you need it."
        )
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise ModelError(f"calling {spec} failed{_place(error, file)}") from error


def _place(error: BaseException, file: Path) -> str:
    """Where in the user's file an error arose, and what it says."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == file.resolve()]
    return f" at line {frames[-1].lineno}, `{frames[-1].line}`: {text}" if frames else f": {text}"


def _unknown(spec: str) -> str:
    path = Path(spec)
    message = f"'{spec}' is no model: expected {FORMS}."
    match path.suffix.lower():
        case ".py":
            there = ", ".join(_functions(path))
            return f"{message} Which function of {spec}?" + (f" It defines {there}." if there else "")
        case ".pt" | ".pth" | ".bin" | ".ckpt" | ".safetensors":
            return (
                f"{message} A file of weights does not say what network they belong to: name the network and give "
                f"--weights {spec}."
            )
        case ".rw" | ".onnx":
            return f"{message} A {path.suffix} file is a result; it can be evaluated, but not quantized."
    if ":" in spec:
        return message
    for collection in COLLECTIONS:
        try:
            check_name(collection, spec)
        except ModelError:
            continue
        return f"{message} Did you mean {collection}:{spec}?"
    return message


def _functions(path: Path) -> list[str]:
    """Names of the functions and classes that a file defines, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _nearest(name: str, there: list[str]) -> str:
    near = difflib.get_close_matches(name, there, n=3, cutoff=0.5)
    if near:
        return f" Did you mean {' or '.join(near)}?"
    return f" It has {', '.join(there[:5])}." if there else ""
