"""Energies and distances of tensors, in float32 or better, slice by slice: a difference is faster in the cache."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from roundwise.graph.matrix import LinearMap

SLICE = 1 << 18
"""Numbers in one slice of a tensor: a mebibyte of them, which stays in a processor's cache."""

OUTPUT_SLICE = 1 << 22
"""Numbers of an output that is computed only to be measured, at a time."""

ACCELERATOR_FACTOR = 64
"""On GPUs slices are this many times larger, because starting an operation costs more than its work."""


def energy(values: Tensor) -> float:
    """Σ‖v‖²."""
    return sum(map(_squares, _slices(values, values)))


def distance(values: Tensor, targets: Tensor) -> float:
    """Σ‖v − t‖²."""
    slices = zip(_slices(values, values), _slices(targets, values), strict=True)
    return sum(_squares(some - wanted) for some, wanted in slices)


def distance_by_rows(layer: LinearMap, compute: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> float:
    """Σ‖v − t‖² for the outputs v of a layer, a few rows at a time: memory that is used again is twice as fast.

    Args:
        layer: says what a row is.
        compute: gives the outputs for some rows of the inputs.
        inputs, targets: of the layer.
    """
    some, wanted = layer.as_rows(inputs), layer.as_rows(targets)
    rows = max(1, _at_a_time(OUTPUT_SLICE, wanted.device) // max(1, wanted[:1].numel()))
    return sum(distance(compute(x), t) for x, t in zip(some.split(rows), wanted.split(rows), strict=True))


def ratio(part: float, whole: float) -> float:
    """A relative error: 1 where the network gives nothing but zeros; never infinite, since reports are kept as JSON."""
    return min(part / whole, sys.float_info.max) if whole else float(part > 0)


def _slices(values: Tensor, like: Tensor) -> Iterator[Tensor]:
    """All numbers, some at a time, in the order in which those of `like` lie in memory: plain, or channels last."""
    plain = values if like.is_contiguous() or like.dim() < 2 else values.movedim(1, -1)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (part.to(dtype) for part in plain.flatten().split(_at_a_time(SLICE, like.device)))


def _squares(values: Tensor) -> float:
    """Σ v², as an inner product: unlike a norm, it is the work of all threads."""
    return float(torch.dot(values, values))


def _at_a_time(numbers: int, device: torch.device) -> int:
    return numbers * (1 if device.type == "cpu" else ACCELERATOR_FACTOR)
