"""The quantizer of one activation: its scale, zero point and codebook. Activations are tensors between operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from roundwise.numerics import affine
from roundwise.numerics.grid import Codebook, affine_grid


@final
@dataclass(frozen=True)
class Quantizer:
    """Scale, zero point and codebook of one activation.

    Attributes:
        scale: step in real units per code, > 0.
        zero_point: the code of 0.0.
        codebook: the integers that codes may be.

    Example:
        >>> Quantizer.spanning(0.0, 6.0, Codebook(8, symmetric=False)).fake_quantize(torch.tensor([1.01, 7.0]))
        tensor([1.0118, 6.0000])
    """

    scale: float
    zero_point: int
    codebook: Codebook

    @classmethod
    def spanning(cls, low: float, high: float, codebook: Codebook) -> Quantizer:
        """The quantizer whose codes reach from `low` to `high`; the interval is extended to contain 0.0."""
        ends = torch.tensor([[[low]], [[high]]], dtype=torch.float32)
        grid = affine_grid(ends[:1], ends[1:], codebook)
        return cls(grid.scale.item(), int(grid.zero_point), codebook)

    @property
    def low(self) -> float:
        """The smallest number that a code stands for."""
        return (self.codebook.qmin - self.zero_point) * self.scale

    @property
    def high(self) -> float:
        """The largest number that a code stands for."""
        return (self.codebook.qmax - self.zero_point) * self.scale

    def fake_quantize(self, values: Tensor) -> Tensor:
        """Quantize to the nearest code, then back to the values' dtype, exactly as the quantized network does."""
        book = self.codebook
        codes = affine.quantize(values, self.scale, self.zero_point, book.qmin, book.qmax, book.dtype)
        return affine.dequantize(codes, self.scale, self.zero_point, values.dtype)
