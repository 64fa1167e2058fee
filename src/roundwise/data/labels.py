"""Labels of samples, from a file or from the caller's own code: checked, and converted to int64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from roundwise.errors import FileFormatError, RoundwiseError
from roundwise.tensor_kinds import odd_kind, what_to_do
from roundwise.wording import number_of


def as_labels(
    values: Any, samples: int | None, where: Path | str, error: type[RoundwiseError] = FileFormatError
) -> Int[Tensor, "samples"]:
    """Check labels and convert them to int64.

    Args:
        values: a tensor, an array or a list of numbers, `[samples]` or `[samples, 1]`.
        samples: how many labels there must be; None if that is not known yet.
        where: the source of the labels, for messages.
        error: the type of exception.

    Raises:
        FileFormatError: there is not one whole number of at least 0 for each sample. (Or `error`.)
    """
    try:
        given = values if isinstance(values, Tensor) else tensor_of(np.array(values))
    except ValueError as reason:
        raise error(
            f"{where}: the labels, of type {type(values).__name__}, are not numbers: {reason}. Give one whole number "
            "for each sample, the number of its class."
        ) from reason
    check_plain(given, where, error)
    whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if not whole or given.shape[1:] not in ((), (1,)) or given.ndim == 0:
        raise error(
            f"{where}: the labels are {described(given)}, but a label is one whole number, the number of a class. "
            "Convert them to integers of shape [samples]; of one-hot rows, take the argmax."
        )
    given = given.detach().cpu().flatten()
    if samples is not None and len(given) != samples:
        raise error(
            f"{where}: {number_of(len(given), 'label')} for {number_of(samples, 'sample')}, so it is not known which "
            "label belongs to which sample. Give one label for each sample, in the order of the samples."
        )
    labels = given.to(torch.int64)
    negative = (labels < 0).nonzero()  # also the upper half of uint64
    if len(negative):
        sample = int(negative[0])
        raise error(
            f"{where}: sample {sample} has label {given[sample].item()}, but classes are counted from 0. Number the "
            "classes as the network has them, and remove samples that belong to none."
        )
    return labels


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor that shares the array's memory, unless its bytes are in the other order.

    Raises:
        ValueError: PyTorch has no such kind of number.
    """
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise ValueError(
            f"an array of {array.dtype} {list(array.shape)} does not hold floats or integers of at most 64 bits"
        )
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def check_plain(tensor: Tensor, where: Path | str, error: type[RoundwiseError] = FileFormatError) -> None:
    """Refuse tensors that do not store one value beside the other, as an array does: sparse, nested, float8, ….

    Raises:
        FileFormatError: the tensor is of such a kind. (Or `error`.)
    """
    kind = odd_kind(tensor)
    if kind is not None:
        raise error(
            f"{where} holds a {kind} tensor, which cannot be cut into batches of samples. Store a plain tensor "
            f"instead. {what_to_do(kind)}"
        )


def described(tensor: Tensor) -> str:
    """Dtype and shape, such as "float32 [2, 3]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
