"""Squared norms and squared distances of tensors, in float32 or better, one slice after the other.

Slices that fit in the processor's cache make this faster, because differences never go through main memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from roundwise.graph.matrix import LinearMap

SLICE = 1 << 18
"""Numbers in one slice: 1 MiB in float32. A larger slice may not fit in the processor's cache, and is slower then."""

OUTPUT_SLICE = 1 << 22
"""Outputs of a layer that are computed and measured at once; with more, the layer's outputs take more memory."""

ACCELERATOR_FACTOR = 64
"""On GPUs slices are this many times larger, because there starting an operation takes longer than a small slice."""


def energy(values: Tensor) -> float:
    """Σ‖v‖²."""
    return sum(map(_squares, _slices(values, values)))


def distance(values: Tensor, targets: Tensor) -> float:
    """Σ‖v − t‖²."""
    slices = zip(_slices(values, values), _slices(targets, values), strict=True)
    return sum(_squares(v - t) for v, t in slices)


def distance_by_rows(layer: LinearMap, compute: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor) -> float:
    """Σ‖v − t‖² for the outputs v of a layer, a few rows at a time: twice as fast, since memory is used again.

    Args:
        layer: defines what a row is.
        compute: gives the layer's outputs for some rows of its inputs.
        inputs, targets: of the layer, all rows.
    """
    x_rows, t_rows = layer.as_rows(inputs), layer.as_rows(targets)
    size = max(1, _slice_size(OUTPUT_SLICE, t_rows.device) // max(1, t_rows[:1].numel()))
    return sum(distance(compute(x), t) for x, t in zip(x_rows.split(size), t_rows.split(size), strict=True))


def relative_error(part: float, whole: float) -> float:
    """part / whole; 1 if only the whole is 0; never infinite, since reports in JSON cannot hold infinity."""
    return min(part / whole, sys.float_info.max) if whole else float(part > 0)


def _slices(values: Tensor, like: Tensor) -> Iterator[Tensor]:
    """All numbers in float32 or better, in slices, in the memory order of `like`: contiguous or channels-last."""
    plain = values if like.is_contiguous() or like.dim() < 2 else values.movedim(1, -1)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (part.to(dtype) for part in plain.flatten().split(_slice_size(SLICE, like.device)))


def _squares(values: Tensor) -> float:
    """Σ v² as an inner product, which runs on all threads; a norm does not."""
    return float(torch.dot(values, values))


def _slice_size(numbers: int, device: torch.device) -> int:
    return numbers * (1 if device.type == "cpu" else ACCELERATOR_FACTOR)
