"""From the real interval that codes should cover to scale and zero point: shared by the estimators.

    symmetric    s = max(high / qmax, low / qmin)                           0 ↔ code 0
    asymmetric   s = (high − low) / (qmax − qmin),   z = clip(⌊qmin − low/s⌉, qmin, qmax)

The interval always contains 0.0, so that zero is represented exactly. Where it is empty (all weights are zero) the
scale is 1: every weight then takes the code of 0.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from roundwise.grid import Codebook, Grid

TINY = 1e-30
"""A scale below this is taken for that of an empty interval: it is on the way to where float32 loses its digits."""


def affine_grid(low: Tensor, high: Tensor, codebook: Codebook) -> Grid:
    """The grid whose codes span `low` (≤ 0) to `high` (≥ 0); both `[groups | 1, rows | 1, blocks]`, float32."""
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if codebook.symmetric:
        scale = positive_scale(torch.maximum(high / codebook.qmax, low / codebook.qmin))
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), codebook)
    levels = codebook.qmax - codebook.qmin
    scale = positive_scale(high / levels - low / levels)  # divided first: the largest floats would overflow
    zero_point = (codebook.qmin - low / scale).round().clamp(codebook.qmin, codebook.qmax)
    return Grid(scale, zero_point.to(torch.int32), codebook)


def positive_scale(scale: Tensor) -> Tensor:
    """The scale, or 1 where there is nothing to scale."""
    return torch.where(scale > TINY, scale, torch.ones_like(scale))
