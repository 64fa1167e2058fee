"""Which network MODEL means on the command line.

    torchvision:resnet18        a network of torchvision, with --weights, --pretrained or --random-weights
    timm:mobilenetv2_100        a network of timm, likewise
    path/file.py:function       the network that the function returns; the file is run, as Python would run it
    path/program.pt2            a program saved with torch.export.save

A name alone never decides where weights come from: a network with random weights quantizes without complaint and is
worth nothing, so the user has to ask for them.
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import click
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from roundwise.cli.vision import COLLECTIONS, build, check_name, preprocessing_of, preprocessing_of_module
from roundwise.cli.weights import PICKLES, FromFile, Pretrained, Random, WeightSource, load_weights
from roundwise.errors import FileFormatError, ModelError
from roundwise.evaluation.preprocessing import Preprocessing

FORMS = "torchvision:NAME, timm:NAME, path/file.py:function or path/program.pt2"


@final
@dataclass(frozen=True)
class LoadedModel:
    """A network, ready to run.

    Attributes:
        name: as the user wrote it.
        network: in eval mode.
        preprocessing: how its own library prepares images, and where that is stated; None if nothing states it.
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
        num_classes: of a torchvision or timm network, if not the usual number.

    Raises:
        ModelError: there is no such model, the weights belong to another model, or the user's code fails.
        FileFormatError: a file is broken or refused.
        click.UsageError: an option is missing, or options contradict each other.
    """
    collection, _, name = spec.partition(":")
    path, _, function = spec.rpartition(":")
    if collection in COLLECTIONS:
        loaded = _from_collection(collection, name, source, num_classes)
    elif num_classes is not None:
        raise click.UsageError(f"--num-classes goes with torchvision: and timm: models; '{spec}' has its own.")
    elif path.endswith(".py"):
        if isinstance(source, Pretrained | Random):
            raise click.UsageError(f"{spec} builds its own model; leave out --pretrained and --random-weights.")
        model = _from_function(Path(path), function)
        loaded = LoadedModel(spec, model, preprocessing_of_module(model))
    elif spec.lower().endswith(".pt2"):
        if source is not None:
            raise click.UsageError("a .pt2 program contains its weights; leave out --weights and the like.")
        return LoadedModel(spec, load_program(Path(spec)))
    else:
        raise ModelError(f"'{spec}' is not a model: expected {FORMS}. {_hint(spec)}")
    assert isinstance(loaded.network, nn.Module)
    loaded.network.eval()
    if isinstance(source, FromFile):
        return replace(loaded, notes=load_weights(loaded.network, source.path))
    return loaded


def stated_preprocessing(spec: str) -> tuple[Preprocessing, str]:
    """The preprocessing that torchvision or timm state for a model; the model is not built.

    Raises:
        ModelError: the model is unknown, or states none.
    """
    collection, _, name = spec.partition(":")
    if collection not in COLLECTIONS:
        raise ModelError(
            f"'{spec}' does not state how images are prepared: only models of the collections do. Give "
            "torchvision:NAME or timm:NAME."
        )
    found = preprocessing_of(collection, name)
    if found is None:
        raise ModelError(
            f"'{spec}' states no preprocessing for single images. Give --size, --resize, --mean and --std."
        )
    return found


def load_program(path: Path) -> ExportedProgram:
    """Read a program saved with `torch.export.save`.

    The pickles in such a file may hold tensors only. PyTorch still evaluates its symbolic shapes as expressions, so a
    program from a stranger is not safe to load.

    Raises:
        FileFormatError: the file is missing, broken, refused, or from another version of PyTorch.
    """
    if not path.is_file():
        raise FileFormatError(f"{path}: there is no such file. Check the path.")
    if not zipfile.is_zipfile(path):
        raise FileFormatError(
            f"{path} is not a program of torch.export: it is incomplete, or another kind of file. Save it again with "
            "torch.export.save."
        )
    try:
        with _tensors_only():
            program = torch.export.load(path)
    except Exception as error:  # the loader raises nearly anything on broken files
        raise FileFormatError(
            f"{path} cannot be loaded as a program of torch.export ({type(error).__name__}: {error}). If another "
            f"version of PyTorch than {torch.__version__} wrote it, export it again."
        ) from error
    assert isinstance(program, ExportedProgram)
    return program


def move(network: nn.Module | ExportedProgram, to: torch.device) -> nn.Module | ExportedProgram:
    """Move a network to a device."""
    if isinstance(network, nn.Module):
        return network.to(to)
    moved: ExportedProgram = move_to_device_pass(network, to)
    return moved


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make every `torch.load` refuse pickles that build anything but tensors, even one that asks for more."""
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
            f"{spec} names an architecture, but not its weights. Give --weights FILE for your own, --pretrained to "
            f"download {collection}'s, or --random-weights to try things out with an untrained network."
        )
    if num_classes is not None and isinstance(source, Pretrained):
        raise click.UsageError("--pretrained weights have a fixed number of classes; leave out --num-classes.")
    notes: tuple[str, ...] = ()
    with torch.random.fork_rng():
        if isinstance(source, Random):
            torch.manual_seed(source.seed)
            notes = (f"random weights (seed {source.seed}): good for trying out and timing, not for use",)
        model = build(collection, name, pretrained=isinstance(source, Pretrained), num_classes=num_classes)
    return LoadedModel(spec, model, preprocessing_of(collection, name), notes)


def _from_function(file: Path, name: str) -> nn.Module:
    """The model that a function of the user's file returns; a class or a finished model will do."""
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


def _hint(spec: str) -> str:
    """What the user may have meant by something that is not a model."""
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix == ".py":
        there = ", ".join(_functions(path))
        return f"Give {spec}:FUNCTION." + (f" The file defines {there}." if there else "")
    if suffix in (*PICKLES, ".safetensors"):
        return f"A file of weights does not say which network they belong to: name it and give --weights {spec}."
    if suffix in (".rw", ".onnx"):
        return f"A {suffix} file is already a result: run `roundwise evaluate` on it."
    for collection in COLLECTIONS if ":" not in spec else ():
        try:
            check_name(collection, spec)
        except ModelError:
            continue
        return f"Did you mean {collection}:{spec}?"
    return "Name the model in one of these forms."


def _functions(path: Path) -> list[str]:
    """Names of the functions and classes that a file defines, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
