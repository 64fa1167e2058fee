"""Trained weights from a file into a network, without running anything that the file contains.

A `.pt`, `.pth`, `.bin` or `.ckpt` file is a pickle: a program. It is read with PyTorch's `weights_only=True`, which
accepts tensors and plain containers and refuses everything else; there is no option to read it in another way.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from roundwise.data.labels import described
from roundwise.data.pickles import RUNS_CODE, code_in
from roundwise.errors import FileFormatError, ModelError
from roundwise.tensor_kinds import odd_kind, what_to_do

PICKLES = (".pt", ".pth", ".bin", ".ckpt")

WRAPPERS = ("state_dict", "model_state_dict", "model", "params", "net")
"""Keys under which training scripts store the weights in a checkpoint, the more telling names first."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of names that DataParallel, torch.compile and Lightning add."""

AUXILIARY = "aux_classifier"
"""The second head of torchvision's segmentation networks. Files hold its weights because training needs it; a network
that was built without it has None there."""


@final
@dataclass(frozen=True)
class FromFile:
    """Weights from a file."""

    path: Path


@final
@dataclass(frozen=True)
class Pretrained:
    """Weights that the model's library downloads."""


@final
@dataclass(frozen=True)
class Random:
    """Weights as the library initialises them, to try things out or to measure time."""

    seed: int = 0


WeightSource = FromFile | Pretrained | Random


def load_weights(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a file's weights into a model, in place; return notes on everything that was not taken literally.

    Raises:
        FileFormatError: the file is broken, is refused, or holds something other than weights.
        ModelError: the weights belong to another model; names and shapes that differ are listed.
    """
    found, notes = _unwrap(read_state_dict(path), path)
    for name, tensor in found.items():
        if (kind := odd_kind(tensor)) is not None:
            raise FileFormatError(
                f"{path}: '{name}' is a {kind} tensor, but a model's weights are plain tensors of floats or integers. "
                f"{what_to_do(kind)} Save the weights again after that."
            )
    expected = model.state_dict(keep_vars=True)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found) and not any(name.startswith(prefix) for name in expected):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
            notes.append(f"'{prefix}' removed from the names of the weights")
    if getattr(model, AUXILIARY, model) is None:
        unused = [name for name in found if name.startswith(f"{AUXILIARY}.")]
        found = {name: tensor for name, tensor in found.items() if name not in unused}
        notes += [f"not used: {len(unused)} weights of '{AUXILIARY}', which only training needs"] if unused else []

    present = {id(tensor) for name, tensor in expected.items() if name in found}
    absent = [name for name in expected if name not in found]
    tied = [name for name in absent if id(expected[name]) in present]
    if tied:
        notes.append(f"stored once, shared by name: {_first(tied)}")
    # Batch-norm's count of training steps is missing in older files, and nothing reads it here.
    missing = [name for name in absent if name not in tied and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in expected]
    differing = [
        f"{name}: {described(found[name])} in the file, {described(expected[name])} in the model"
        for name in found
        if name in expected and not _fits(found[name], expected[name])
    ]
    differences = {"missing from the file": missing, "in the file only": unexpected, "of another shape": differing}
    if any(differences.values()):
        listed = "; ".join(f"{len(names)} {what} ({_first(names)})" for what, names in differences.items() if names)
        raise ModelError(
            f"{path} does not hold this model's weights: of {len(expected)} tensors {listed}. Name the architecture "
            "that they were trained in (for another number of classes: --num-classes), or build the model in a file.py "
            "and give file.py:function."
        )
    kinds = {(_name(found[name].dtype), _name(expected[name].dtype)) for name in found}
    notes += [f"weights converted from {stored} to {wanted}" for stored, wanted in sorted(kinds) if stored != wanted]
    model.load_state_dict(found, strict=False)  # whatever is still missing was found to be harmless above
    return tuple(notes)


def read_state_dict(path: Path) -> Mapping[Any, Any]:
    """Read the content of a weights file, unchanged.

    Raises:
        FileFormatError: the file is broken, refused, or not a mapping.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise FileFormatError(
                f"{path} is not a safetensors file, or is incomplete: {error}. Save it again with save_file."
            ) from error
    if suffix not in PICKLES:
        raise FileFormatError(
            f"{path}: '{suffix}' files are not read. Save the weights as .safetensors, or as {', '.join(PICKLES)}."
        )
    try:
        with warnings.catch_warnings():
            # About an unusual pickle protocol, which either works or ends in the error below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on broken files
        raise FileFormatError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise FileFormatError(
            f"{path} holds a {type(content).__name__}, not a dict of weights. Save the model's state_dict()."
        )
    return content


def _refusal(path: Path, error: Exception) -> str:
    message = str(error)
    asked = code_in(error)
    if asked is None:
        reason = message.splitlines()[0] if message else type(error).__name__
        return f"{path} cannot be read as weights ({reason}): it is incomplete or another kind of file. Save it again."
    return (
        f"{path} is refused: besides tensors it holds '{asked}', {RUNS_CODE} If you trust the file, convert "
        "it once: `from safetensors.torch import save_file; m = torch.load(path, weights_only=False); "
        "save_file(m.state_dict(), 'weights.safetensors')` (or m['state_dict'], if m is a dict), then give the "
        ".safetensors file."
    )


def _unwrap(content: Mapping[Any, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a checkpoint, and notes on what else it holds."""
    notes = []
    for key in WRAPPERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, Tensor) for value in inner.values()):
            others = [str(name) for name in content if name != key]
            notes.append(f"weights taken from '{key}'" + (f", not used: {_first(others)}" if others else ""))
            content = inner
            break
    strangers = [
        f"'{name}' ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)
    ]
    if strangers or not content:
        what = f"values that are not tensors: {_first(strangers)}" if strangers else "nothing"
        raise FileFormatError(
            f"{path} holds {what}. Save a state dict: names and tensors, directly or under one of "
            f"{', '.join(map(repr, WRAPPERS))}."
        )
    return {str(name): value for name, value in content.items()}, notes


def _fits(stored: Tensor, wanted: Tensor) -> bool:
    return stored.shape == wanted.shape and stored.is_floating_point() == wanted.is_floating_point()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first(names: list[str], count: int = 5) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f", and {rest} more" if rest > 0 else "")
