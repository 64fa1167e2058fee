"""Squared norms and squared distances of tensors, one slice after the other.

Slices that fit in the processor's cache make this faster, because differences never go through main memory. Each slice
is summed in float32 or better; where squares overflow float32, or are too small for it, in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

SLICE = 1 << 18
"""Numbers in one slice: 1 MiB in float32. A larger slice may not fit in the processor's cache, and is slower then."""

ACCELERATOR_FACTOR = 64
"""On GPUs slices are this many times larger, because there starting an operation takes longer than a small slice."""

LEAST_SUM = 1e-20
"""A sum of squares in float32 below 1e-20 is computed again in float64, because squares below 1e-38 are 0 there. With a
larger bound, more slices of small numbers are summed twice."""


def energy(values: Tensor) -> float:
    """Σ‖v‖².

    Example:
        >>> f"{energy(torch.full((4,), 1e20)):.3g}"
        '4e+40'
    """
    return sum(_squares(part) for part in _slices(values, values))


def distance(values: Tensor, targets: Tensor) -> float:
    """Σ‖v − t‖²."""
    slices = zip(_slices(values, values), _slices(targets, values), strict=True)
    return sum(_squares(v, t) for v, t in slices)


def relative_error(part: float, whole: float) -> float:
    """part / whole; 1 if only the whole is 0; never infinite, since reports in JSON cannot hold infinity."""
    return min(part / whole, sys.float_info.max) if whole else float(part > 0)


def slice_size(numbers: int, device: torch.device) -> int:
    """How many numbers to process at once on a device, if `numbers` is right for a processor with a cache."""
    return numbers * (1 if device.type == "cpu" else ACCELERATOR_FACTOR)


def _slices(values: Tensor, like: Tensor) -> Iterator[Tensor]:
    """All numbers in float32 or better, in slices, in the memory order of `like`: contiguous or channels-last."""
    plain = values if like.is_contiguous() or like.dim() < 2 else values.movedim(1, -1)
    dtype = torch.promote_types(values.dtype, torch.float32)
    return (part.to(dtype) for part in plain.flatten().split(slice_size(SLICE, values.device)))


def _squares(values: Tensor, targets: Tensor | None = None) -> float:
    """Σ v², or Σ (v − t)², as an inner product, which runs on all threads; a norm does not."""
    difference = values if targets is None else values - targets
    total = float(torch.dot(difference, difference))
    if LEAST_SUM < total < float("inf") or difference.dtype is torch.float64:
        return total
    difference = values.double() if targets is None else values.double() - targets.double()
    return float(torch.dot(difference, difference))
