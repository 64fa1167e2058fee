"""Trained weights from a file into a network, without running anything that the file contains.

A `.pt`, `.pth`, `.bin` or `.ckpt` file is a pickle: a program. It is read with PyTorch's `weights_only=True`, which
knows tensors and plain containers and refuses the rest; there is no option to do it otherwise.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from roundwise.errors import FileFormatError, ModelError

PICKLES = (".pt", ".pth", ".bin", ".ckpt")

# Where training scripts put the weights in what they save, the more telling names first.
WRAPPERS = ("state_dict", "model_state_dict", "model", "params", "net")

# What wrappers around a network put before every name: DataParallel, torch.compile, and Lightning modules.
PREFIXES = ("module.", "_orig_mod.", "model.")

# Where torchvision's segmentation networks keep their second head. Files have its weights, since training had it; a
# network that was built without it has None there.
AUXILIARY = "aux_classifier"


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
    """Weights as the library initialises them: for trying things out, and for timing."""

    seed: int = 0


WeightSource = FromFile | Pretrained | Random


def load_weights(model: nn.Module, path: Path) -> tuple[str, ...]:
    """Load a file's weights into a model, in place; return notes on everything that was not taken literally.

    Raises:
        FileFormatError: the file is broken, is refused, or holds something else than weights.
        ModelError: the weights are not this model's; names and shapes that differ are listed.
    """
    found, notes = _unwrap(read_state_dict(path), path)
    expected = model.state_dict(keep_vars=True)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found) and not any(name.startswith(prefix) for name in expected):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
            notes.append(f"'{prefix}' taken off the names of the weights")

    if getattr(model, AUXILIARY, model) is None:
        kept = {name: tensor for name, tensor in found.items() if not name.startswith(f"{AUXILIARY}.")}
        if len(kept) < len(found):
            notes.append(f"not used: {len(found) - len(kept)} weights of '{AUXILIARY}', which only training needs")
        found = kept
    missing = _missing(found, expected, notes)
    unexpected = [name for name in found if name not in expected]
    differing = [
        f"{name}: {_described(found[name])} in the file, {_described(expected[name])} in the model"
        for name in found
        if name in expected and not _fits(found[name], expected[name])
    ]
    if missing or unexpected or differing:
        parts = [
            f"{len(names)} {what} ({_first(names)})"
            for names, what in (
                (missing, "missing from the file"),
                (unexpected, "in the file only"),
                (differing, "of another shape or kind"),
            )
            if names
        ]
        raise ModelError(
            f"{path} does not hold this model's weights: of {len(expected)} tensors {'; '.join(parts)}. Name the "
            "architecture that they were trained in (for another number of classes: --num-classes), or build the model "
            "in a file.py and give file.py:function."
        )
    kinds = {(found[name].dtype, expected[name].dtype) for name in found}
    for stored, wanted in sorted(kinds, key=str):
        if stored != wanted and stored.is_floating_point:
            notes.append(f"weights converted from {_name(stored)} to {_name(wanted)}")
    # Not strict: what is missing was just found to be harmless.
    model.load_state_dict(found, strict=False)
    return tuple(notes)


def read_state_dict(path: Path) -> Mapping[Any, Any]:
    """What a weights file contains, as it is.

    Raises:
        FileFormatError: the file is broken, refused, or not a mapping.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except SafetensorError as error:
            raise FileFormatError(f"{path} is not a safetensors file: {error}.") from error
    if suffix not in PICKLES:
        raise FileFormatError(f"{path}: weights come in .safetensors, {', '.join(PICKLES)} files, not '{suffix}'.")
    try:
        with warnings.catch_warnings():
            # On an unusual pickle protocol, which either works or ends in the error below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on broken files
        raise FileFormatError(_refusal(path, error)) from error
    if not isinstance(content, Mapping):
        raise FileFormatError(f"{path} holds a {type(content).__name__}, not a dict of weights (a state dict).")
    return content


def _refusal(path: Path, error: Exception) -> str:
    message = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", message)
    if asked is None:
        reason = message.splitlines()[0] if message else type(error).__name__
        return f"{path} cannot be read as weights: it is truncated or something else ({reason})."
    name = asked.group(1)
    return (
        f"{path} is refused: besides tensors it holds '{name}', and building it would run code that the file names. "
        "(A whole model saved with torch.save(model) looks like this too.) Where you trust the file, convert it once: "
        "`from safetensors.torch import save_file; m = torch.load(path, weights_only=False); "
        "save_file(m.state_dict(), 'weights.safetensors')` (or m['state_dict'], if m is a dict), then give the "
        ".safetensors file."
    )


def _unwrap(content: Mapping[Any, Any], path: Path) -> tuple[dict[str, Tensor], list[str]]:
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
            f"{path} holds {what}. A state dict is needed: names and tensors, directly or under one of "
            f"{', '.join(map(repr, WRAPPERS))}."
        )
    return {str(name): value for name, value in content.items()}, notes


def _missing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], notes: list[str]) -> list[str]:
    """Names that the file lacks and the model needs."""
    present = {id(tensor) for name, tensor in expected.items() if name in found}
    missing = []
    for name, tensor in expected.items():
        if name in found or id(tensor) in present:  # a tied weight is stored once
            continue
        if name.endswith(
            "num_batches_tracked"
        ):  # counts training steps; older files lack it, and nothing reads it here
            continue
        missing.append(name)
    tied = [name for name, tensor in expected.items() if name not in found and id(tensor) in present]
    if tied:
        notes.append(f"stored once, shared by name: {_first(tied)}")
    return missing


def _fits(stored: Tensor, wanted: Tensor) -> bool:
    return stored.shape == wanted.shape and stored.is_floating_point() == wanted.is_floating_point()


def _described(tensor: Tensor) -> str:
    return f"{_name(tensor.dtype)} {list(tensor.shape)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first(names: list[str], count: int = 5) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f", and {rest} more" if rest > 0 else "")
