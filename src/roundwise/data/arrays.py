"""Inputs and labels from array files: `.npy`, `.npz`, `.pt`/`.pth` and `.safetensors`. No code in them is run.

A file with one array holds the inputs. In a file with several arrays, inputs and labels are found by their usual names,
or by the names that the caller gives. A guess that could be wrong is an error that lists the arrays.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from roundwise.data.labels import check_plain, described, tensor_of
from roundwise.data.pickles import RUNS_CODE, code_in
from roundwise.data.textfiles import read_lines
from roundwise.errors import FileFormatError

INPUT_KEYS = ("images", "inputs", "x", "data")
LABEL_KEYS = ("labels", "targets", "y")

TEXT_SUFFIXES = (".txt", ".csv")
"""Of text files with one label per line."""


@final
@dataclass(frozen=True)
class Keys:
    """Names of the arrays to use in a file with several; None looks for the usual names above."""

    inputs: str | None = None
    labels: str | None = None


def read_arrays(path: Path, keys: Keys = Keys()) -> tuple[Tensor, Tensor | None]:
    """Read the inputs of a file, and the labels if it has them. A `.npy` file is mapped into memory, not read.

    Raises:
        FileFormatError: the file is broken, holds something other than arrays, or several arrays could be meant.
    """
    arrays = _open(path, "inputs", f"a folder of images, or a file of arrays ({', '.join(READERS)})")
    if isinstance(arrays, Tensor):
        if keys != Keys():
            named = " and ".join(repr(key) for key in (keys.inputs, keys.labels) if key is not None)
            raise FileFormatError(
                f"{path} holds a single array without a name, so nothing in it is called {named}. Leave out the names "
                "(--input-key, --label-key; in Python, Keys)."
            )
        return arrays, None
    labels = _choose(path, arrays, keys.labels, LABEL_KEYS, "labels")
    rest = {name: array for name, array in arrays.items() if name != labels}
    inputs = _choose(path, rest, keys.inputs, INPUT_KEYS, "inputs")
    if inputs is None:
        if len(rest) != 1:
            raise FileFormatError(
                f"{path}: which array holds the inputs? Name it with --input-key (in Python, Keys(inputs=…)). "
                f"There are {_listing(arrays)}."
            )
        inputs = next(iter(rest))
    return arrays[inputs], None if labels is None else arrays[labels]


def read_labels(path: Path) -> Tensor:
    """Read labels from a file of their own: a text file with one whole number per line, or an array file.

    Raises:
        FileFormatError: the file is broken or holds no labels.
    """
    if path.suffix.lower() in TEXT_SUFFIXES:
        return torch.tensor([_number(line, number, path) for number, line in enumerate(read_lines(path), start=1)])
    text, files = ", ".join(TEXT_SUFFIXES), ", ".join(READERS)
    arrays = _open(path, "labels", f"a text file with one number per line ({text}), or a file of arrays ({files})")
    if isinstance(arrays, Tensor):
        return arrays
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    name = _choose(path, arrays, None, LABEL_KEYS, "labels")
    if name is None:
        raise FileFormatError(
            f"{path} holds {len(arrays)} arrays, and it is not known which of them are the labels: {_listing(arrays)}. "
            f"Name it one of {', '.join(LABEL_KEYS)}, or give a file with the labels alone."
        )
    return arrays[name]


def _number(line: str, number: int, path: Path) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,18}", line):
        return int(line)
    found = f"{line[:40]!r}{'…' if len(line) > 40 else ''}" if line else "empty"
    raise FileFormatError(
        f"{path}, line {number} is {found}, but each line must be the label of one sample: one whole number, its class "
        "counted from 0. Remove headings, file names and empty lines."
    )


def _choose(path: Path, arrays: Mapping[str, Tensor], key: str | None, usual: tuple[str, ...], what: str) -> str | None:
    if key is not None:
        if key not in arrays:
            raise FileFormatError(
                f"{path} has no array '{key}' for the {what}. Choose one of those that it has: {_listing(arrays)}."
            )
        return key
    found = [name for name in usual if name in arrays]
    if len(found) > 1:
        raise FileFormatError(
            f"{path}: {' and '.join(repr(name) for name in found)} could both be the {what}. Choose one with "
            f"--{what.removesuffix('s')}-key (in Python, Keys({what}=…)). There are {_listing(arrays)}."
        )
    return found[0] if found else None


def _listing(arrays: Mapping[str, Tensor]) -> str:
    return ", ".join(f"'{name}' {described(array)}" for name, array in sorted(arrays.items()))


def _open(path: Path, what: str, known: str) -> Tensor | Mapping[str, Tensor]:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        kind = f"has the unknown suffix '{path.suffix}'" if suffix else "has no suffix"
        raise FileFormatError(f"{path} {kind}, so it is not known how to read {what} from it. Give {known}.")
    reader, advice = READERS[suffix]
    try:
        arrays = reader(path)
    except Exception as error:  # NumPy, zipfile and the unpickler raise nearly anything on damaged files
        if (code := code_in(error)) is not None:
            raise FileFormatError(
                f"{path} is refused: besides tensors it holds '{code}', {RUNS_CODE} {advice}"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        damaged = "The file is damaged or incomplete, or holds something other than plain numbers. "
        if isinstance(error, _OtherContentError):
            damaged = ""
        raise FileFormatError(f"{path} cannot be read for its {what}: {reason}. {damaged}{advice}") from error
    if isinstance(arrays, Mapping) and not arrays:
        raise FileFormatError(f"{path} holds no arrays. {advice}")
    for array in arrays.values() if isinstance(arrays, Mapping) else [arrays]:
        check_plain(array, path)
    return arrays


class _OtherContentError(Exception):
    """A sound file that holds something else than arrays."""


def _read_npy(path: Path) -> Tensor:
    # np.load would take an unknown file for a pickle. Mode "c": PyTorch warns of memory that it must not write to.
    return tensor_of(np.lib.format.open_memmap(path, mode="c"))


def _read_npz(path: Path) -> dict[str, Tensor]:
    if not zipfile.is_zipfile(path):  # np.load would take it for a pickle
        raise ValueError("it is not a zip archive")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise _OtherContentError(f"'{name}' in it is something else than an array")
    return {name: tensor_of(array) for name, array in arrays.items()}


def _read_torch(path: Path) -> Tensor | dict[str, Tensor]:
    match torch.load(path, map_location="cpu", weights_only=True):
        case Tensor() as tensor:
            return tensor
        case dict() as content if content:
            for name, value in content.items():
                if not isinstance(value, Tensor):
                    kind = type(value).__name__
                    raise _OtherContentError(f"'{name}' in it is of type {kind}, and must be a tensor like the others")
            return {str(name): value for name, value in content.items()}
        case [Tensor() as inputs, Tensor() as labels]:
            return {"inputs": inputs, "labels": labels}
        case other:
            raise _OtherContentError(
                f"it holds a {type(other).__name__}, not a tensor, a dict of tensors or a pair of tensors"
            )


READERS: dict[str, tuple[Callable[[Path], Tensor | Mapping[str, Tensor]], str]] = {
    ".npy": (_read_npy, "Save one array of floats or integers with numpy.save(path, array)."),
    ".npz": (_read_npz, "Save arrays with numpy.savez(path, images=…); one larger than the memory, with numpy.save."),
    ".pt": (_read_torch, "Save plain tensors with torch.save({'inputs': …, 'labels': …}, path)."),
    ".pth": (_read_torch, "Save plain tensors with torch.save({'inputs': …, 'labels': …}, path)."),
    ".safetensors": (load_file, "Save tensors with safetensors.torch.save_file({'inputs': …}, path)."),
}
"""By suffix, how a file is read, and what to do where it cannot be read."""
