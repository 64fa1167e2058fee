"""Find a network by its name, build it, and fill it with weights.

    torchvision:resnet18        a network of torchvision; the user says where its weights come from (`weights.py`)
    timm:mobilenetv2_100        a network of timm, likewise
    path/file.py:function       the network that the function returns; the file is run, as Python would run it
    path/program.pt2            a program saved with torch.export.save

A name alone never decides where weights come from: a network with random weights quantizes without complaint and is
worth nothing, so the user has to ask for them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from roundwise.data.preprocessing import Preprocessing
from roundwise.errors import ModelError, RecipeError
from roundwise.loading.programs import load_program
from roundwise.loading.python_files import from_function, functions_in
from roundwise.loading.vision import COLLECTIONS, build, check_name, preprocessing_of, preprocessing_of_module
from roundwise.loading.weights import PICKLES, FromFile, Pretrained, Random, WeightSource, load_weights

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
        RecipeError: the source of the weights or the number of classes is missing, or does not go with the model.
    """
    collection, _, name = spec.partition(":")
    path, _, function = spec.rpartition(":")
    if collection in COLLECTIONS:
        loaded = _from_collection(collection, name, source, num_classes)
    elif num_classes is not None:
        raise RecipeError(f"--num-classes goes with torchvision: and timm: models; '{spec}' has its own. Leave it out.")
    elif path.endswith(".py"):
        if isinstance(source, Pretrained | Random):
            raise RecipeError(f"{spec} builds its own model; leave out --pretrained and --random-weights.")
        model = from_function(Path(path), function)
        loaded = LoadedModel(spec, model, preprocessing_of_module(model))
    elif spec.lower().endswith(".pt2"):
        if source is not None:
            raise RecipeError("a .pt2 program contains its weights; leave out --weights and the like.")
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


def move(network: nn.Module | ExportedProgram, to: torch.device) -> nn.Module | ExportedProgram:
    """Move a network to a device."""
    if isinstance(network, nn.Module):
        return network.to(to)
    moved: ExportedProgram = move_to_device_pass(network, to)
    return moved


def _from_collection(collection: str, name: str, source: WeightSource | None, num_classes: int | None) -> LoadedModel:
    check_name(collection, name)
    spec = f"{collection}:{name}"
    if source is None:
        raise RecipeError(
            f"{spec} names an architecture, but not its weights. Give --weights FILE for your own, --pretrained to "
            f"download {collection}'s, or --random-weights to try things out with an untrained network (in Python, "
            "FromFile(path), Pretrained() or Random())."
        )
    if num_classes is not None and isinstance(source, Pretrained):
        raise RecipeError("--pretrained weights have a fixed number of classes; leave out --num-classes.")
    notes: tuple[str, ...] = ()
    with torch.random.fork_rng():
        if isinstance(source, Random):
            torch.manual_seed(source.seed)
            notes = (f"random weights (seed {source.seed}): good for trying out and timing, not for use",)
        model = build(collection, name, pretrained=isinstance(source, Pretrained), num_classes=num_classes)
    return LoadedModel(spec, model, preprocessing_of(collection, name), notes)


def _hint(spec: str) -> str:
    """What the user may have meant by something that is not a model."""
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix == ".py":
        there = ", ".join(functions_in(path))
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
