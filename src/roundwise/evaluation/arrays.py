"""Inputs and labels from array files: `.npy`, `.npz`, `.pt`/`.pth` and `.safetensors`. Nothing in them is executed.

A file with one array holds the inputs. In a file with several, inputs and labels are found by their usual names, or by
the names that the caller gives; a guess that could be wrong is an error that lists what there is.
"""

from __future__ import annotations

import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from roundwise.errors import FileFormatError, RoundwiseError
from roundwise.evaluation.textfiles import read_lines
from roundwise.wording import number_of

Array = np.ndarray[Any, Any] | Tensor

INPUT_KEYS = ("images", "inputs", "x", "data")
LABEL_KEYS = ("labels", "targets", "y")

TEXT_SUFFIXES = (".txt", ".csv")
"""Of files of labels, one a line."""


@final
@dataclass(frozen=True)
class Keys:
    """Names of the arrays to use in a file with several; None looks for the usual names, above."""

    inputs: str | None = None
    labels: str | None = None


def read_arrays(path: Path, keys: Keys = Keys()) -> tuple[Array, Array | None]:
    """Inputs, and labels where the file has them.

    Raises:
        FileFormatError: the file is broken, holds something else than arrays, or it is unclear which array to use.
    """
    arrays = _open(path, f"a folder of images, {', '.join(READERS)}")
    if not isinstance(arrays, Mapping):
        if keys.inputs is not None or keys.labels is not None:
            raise FileFormatError(f"{path} holds a single array without a name; leave out the keys.")
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


def read_labels(path: Path) -> Array:
    """Labels from a file of their own: a text file with one whole number a line, or an array file.

    Raises:
        FileFormatError: the file is broken or holds no labels.
    """
    if path.suffix.lower() in TEXT_SUFFIXES:
        return torch.tensor([_number(line, number, path) for number, line in enumerate(read_lines(path), start=1)])
    arrays = _open(path, f"text, one number a line ({', '.join(TEXT_SUFFIXES)}), or an array ({', '.join(READERS)})")
    if not isinstance(arrays, Mapping):
        return arrays
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    name = _choose(path, arrays, None, LABEL_KEYS, "labels")
    if name is None:
        raise FileFormatError(f"{path}: no array is named {', '.join(LABEL_KEYS)}; there are {_listing(arrays)}.")
    return arrays[name]


def _number(line: str, number: int, path: Path) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,18}", line):
        return int(line)
    found = f"{line[:40]!r}{'…' if len(line) > 40 else ''}" if line else "empty"
    raise FileFormatError(
        f"{path}, line {number} is {found}. A text file of labels has one whole number a line, a sample's class "
        "counted from 0, and nothing else: no heading, no file names, no empty lines."
    )


def as_labels(
    values: Any, samples: int | None, where: Path | str, error: type[RoundwiseError] = FileFormatError
) -> Int[Tensor, "samples"]:
    """Check labels and turn them into int64.

    Args:
        values: an array, a tensor, or a list of numbers; `[samples]` or `[samples, 1]`.
        samples: how many there must be; None where that is not known yet.
        where, error: where they came from, and what is raised of them.

    Raises:
        FileFormatError: not one whole number ≥ 0 for each of the samples. (Or `error`.)
    """
    if not isinstance(values, Tensor | np.ndarray):
        try:
            values = torch.as_tensor(values)
        except (TypeError, ValueError, RuntimeError) as reason:
            raise error(
                f"{where}: labels are a {type(values).__name__} that is no list of numbers ({reason}); one whole "
                "number for each sample is needed."
            ) from reason
    if isinstance(values, Tensor):
        _check_plain(values, where, error)
        whole = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    else:
        whole = values.dtype.kind in "iu"
    column = values.ndim == 2 and values.shape[1] == 1
    if not whole or not (values.ndim == 1 or column):
        raise error(
            f"{where}: labels are {_kind(values)} {list(values.shape)}; one whole number for each sample is needed (of "
            "one-hot rows, their argmax)."
        )
    given = torch.from_numpy(native(values, where)) if isinstance(values, np.ndarray) else values.detach().cpu()
    if column:
        given = given[:, 0]
    if samples is not None and len(given) != samples:
        raise error(
            f"{where}: {number_of(len(given), 'label')} for {number_of(samples, 'sample')}; there must be one for each."
        )
    labels = given.to(torch.int64)
    if len(labels) and int(labels.min()) < 0:
        sample = int(labels.argmin())
        if given.dtype == torch.uint64:  # int64 takes its upper half for negative numbers
            raise error(
                f"{where}: sample {sample} has label {int(labels[sample]) + 2**64}, which is no class's number."
            )
        raise error(f"{where}: sample {sample} has label {int(labels[sample])}; classes count from 0.")
    return labels


def native(array: np.ndarray[Any, Any], path: Path | str) -> np.ndarray[Any, Any]:
    """A writable copy in the machine's byte order, which is what PyTorch takes.

    Raises:
        FileFormatError: the array holds something else than numbers.
    """
    check_kind(array, path)
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C")


def check_kind(array: np.ndarray[Any, Any], path: Path | str) -> None:
    """Make sure that an array holds real numbers, of a kind that PyTorch knows.

    Raises:
        FileFormatError: it holds something else.
    """
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise FileFormatError(
            f"{path}: an array of {array.dtype} {list(array.shape)} cannot be a network's input. Save "
            "the inputs as floats or integers of at most 64 bits."
        )


def _check_plain(tensor: Tensor, where: Path | str, error: type[RoundwiseError] = FileFormatError) -> None:
    """Make sure that a tensor holds its values one beside the other, as an array does."""
    kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized:
        kind = "quantized"
    elif tensor.is_meta:
        kind = "meta"
    elif kind == "strided":
        return
    raise error(
        f"{where} holds a {kind} tensor, which cannot be cut into batches of samples. Give a plain one (of a sparse "
        "tensor, to_dense(); of a quantized one, dequantize(); one on the device 'meta' has no values)."
    )


def _open(path: Path, known: str) -> Array | Mapping[str, Array]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        kind = f"'{path.suffix}' is not a known kind of data" if path.suffix else "its name does not say what it is"
        raise FileFormatError(f"{path}: {kind}. Known: {known}.")
    arrays = reader(path)
    if isinstance(arrays, Mapping) and not arrays:
        raise FileFormatError(f"{path} holds no arrays. Save the inputs in it, for example as 'images'.")
    for array in arrays.values() if isinstance(arrays, Mapping) else [arrays]:
        if isinstance(array, Tensor):
            _check_plain(array, path)
    return arrays


def _choose(path: Path, arrays: Mapping[str, Array], key: str | None, usual: tuple[str, ...], what: str) -> str | None:
    if key is not None:
        if key not in arrays:
            raise FileFormatError(f"{path} has no array '{key}' for the {what}. There are {_listing(arrays)}.")
        return key
    found = [name for name in usual if name in arrays]
    if len(found) > 1:
        raise FileFormatError(
            f"{path}: {' and '.join(repr(name) for name in found)} could both be the {what}. Choose one with "
            f"--{what.removesuffix('s')}-key (in Python, Keys({what}=…)). There are {_listing(arrays)}."
        )
    return found[0] if found else None


def _listing(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"'{name}' {_kind(array)} {list(array.shape)}" for name, array in sorted(arrays.items()))


def _kind(array: Array) -> str:
    return str(array.dtype).removeprefix("torch.")


# What NumPy raises on headers that are cut off, or state a size that cannot be, and on damaged content.
_BROKEN_ARRAY = (ValueError, OSError, EOFError, OverflowError, tokenize.TokenError, SyntaxError, zlib.error)


def _read_npy(path: Path) -> Array:
    try:
        # Not np.load, which takes what it does not recognise for a pickle, and leaves the file open after an error.
        return np.lib.format.open_memmap(path, mode="r")
    except _BROKEN_ARRAY as error:
        reason = f"is not a NumPy array, or not all of one ({str(error).rstrip('.')})"
        if "Python objects" in str(error):
            reason = "holds Python objects, not numbers"
        raise FileFormatError(
            f"{path} {reason}. Save the inputs as one array of floats or integers, by numpy.save(path, array)."
        ) from error


def _read_npz(path: Path) -> dict[str, Array]:
    # Checked first, because np.load would treat anything else as a pickle and answer with advice to allow those.
    if not zipfile.is_zipfile(path):
        raise FileFormatError(
            f"{path} is not an .npz archive: it is truncated, or something else. Save the inputs by "
            "numpy.savez(path, images=array)."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except MemoryError as error:
        raise FileFormatError(
            f"{path} does not fit in memory: {error}. If that is not its size, the file is damaged; else save the "
            "inputs by numpy.save as .npy, which is read a batch at a time."
        ) from error
    except (*_BROKEN_ARRAY, zipfile.BadZipFile) as error:
        raise FileFormatError(f"{path} is not an archive of arrays of numbers: {error}.") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise FileFormatError(
                f"{path} is not an archive of arrays: '{name}' in it is something else. Save the inputs by "
                "numpy.savez(path, images=array)."
            )
    return arrays


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise FileFormatError(f"{path} is not a safetensors file: {error}.") from error


def _read_torch(path: Path) -> Array | dict[str, Array]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on broken files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(
            f"{path} cannot be read as tensors only ({reason}). Anything else in a .pt file would be a program to run, "
            "so it is refused; save plain tensors with torch.save({'inputs': …, 'labels': …}, …)."
        ) from error
    match content:
        case Tensor():
            return content
        case dict() if content and all(isinstance(value, Tensor) for value in content.values()):
            return {str(name): value for name, value in content.items()}
        case [Tensor() as inputs, Tensor() as labels]:
            return {"inputs": inputs, "labels": labels}
    raise FileFormatError(
        f"{path} holds a {type(content).__name__}; a tensor, a dict of tensors or a pair (inputs, labels) is needed."
    )


READERS: dict[str, Callable[[Path], Array | Mapping[str, Array]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}
