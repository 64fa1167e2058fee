"""The modules that quantize weights and activations during training, with scales and offsets that are parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from roundwise.graph.matrix import LinearMap
from roundwise.methods.interfaces import ActivationQuantizer, WeightQuantizer
from roundwise.numerics.grid import Codebook, Grid, expand_blocks
from roundwise.numerics.quantizer import Quantizer
from roundwise.numerics.straight_through import fake_quantize, gradient_scale, positive, round_through, scaled_gradient


@final
class LearnedWeight(WeightQuantizer):
    """Quantizes the weight of one layer; the scales are learned, the zero points are not.

    Attributes:
        scale: the parameter, of the grid's shape `[groups | 1, rows | 1, blocks]`. Its absolute value counts.
    """

    def __init__(self, grid: Grid, layer: LinearMap, *, scales_gradients: bool) -> None:
        super().__init__()
        self.codebook: Codebook = grid.codebook
        self.scale = nn.Parameter(grid.scale.detach().clone())
        self.zero_point: Tensor
        self.register_buffer("zero_point", grid.zero_point.float())
        self.codes: Tensor | None
        self.register_buffer("codes", None)
        self._layer = layer
        shared = math.prod(layer.weight_shape) // grid.scale.numel()
        self._factor = gradient_scale(shared, self.codebook.qmax) if scales_gradients else 1.0

    @property
    def grid(self) -> Grid:
        """The grid with the scales that training has reached."""
        zero_point = self.zero_point.round().to(torch.int32)
        return Grid(positive(self.scale).detach().float(), zero_point, self.codebook)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight, quantized and back in float, of the same shape."""
        if self.codes is not None:
            scale = expand_blocks(scaled_gradient(positive(self.scale), self._factor), self.codes.shape[-1])
            zero_point = expand_blocks(self.zero_point, self.codes.shape[-1])
            return self._layer.to_weight((scale * (self.codes - zero_point)).to(weight.dtype))
        matrix = self._layer.to_matrix(weight)
        values = matrix.reshape(*matrix.shape[:2], self.scale.shape[-1], -1)
        scale, zero_point = positive(self.scale).unsqueeze(-1), self.zero_point.unsqueeze(-1)
        book = self.codebook
        quantized = fake_quantize(values, scale, zero_point, book.qmin, book.qmax, self._factor)
        return self._layer.to_weight(quantized.reshape(matrix.shape))

    def extra_repr(self) -> str:
        return f"{self.codebook.bits} bits, {self.scale.numel()} scales"


@final
@dataclass(frozen=True)
class LearnedOffset:
    """How the offset of an activation is learned.

    Attributes:
        signed: whether codes count from the middle of the codebook, as signed codes do. The offset is the real number
            that the code in the middle stands for; otherwise it is that of the smallest code.
        real: whether it stays a real number, also where 0.0 then has no code.
    """

    signed: bool
    real: bool


@final
class LearnedActivation(ActivationQuantizer):
    """Quantizes one activation; its scale is learned, and with LSQ+ its offset too.

    Attributes:
        scale: the parameter, a single number. Its absolute value counts.
        offset: the parameter β of LSQ+, a real number: what the first code stands for, or the one in the middle
            (`LearnedOffset`). None where the zero point is fixed.
    """

    def __init__(
        self, quantizer: Quantizer, *, learned: LearnedOffset | None, scales_gradients: bool, device: torch.device
    ) -> None:
        super().__init__()
        self.codebook: Codebook = quantizer.codebook
        self.scale = nn.Parameter(torch.tensor(quantizer.scale, dtype=torch.float32, device=device))
        self.zero_point: Tensor
        self.register_buffer("zero_point", torch.tensor(float(quantizer.zero_point), device=device))
        self.offset: nn.Parameter | None = None
        self._real = learned is not None and learned.real
        book, self._first = self.codebook, 0
        if learned is not None:
            self._first = (book.qmin + book.qmax + 1) // 2 if learned.signed else book.qmin
            start = (self._first - quantizer.zero_point) * quantizer.scale
            self.offset = nn.Parameter(torch.tensor(start, dtype=torch.float32, device=device))
        self._largest = book.qmax - self._first  # p in the paper
        self._scales_gradients = scales_gradients

    def _zero_point(self, scale: Tensor) -> Tensor:
        if self.offset is None:
            return self.zero_point
        real = self._first - self.offset / scale
        return real if self._real else round_through(real.clamp(self.codebook.qmin, self.codebook.qmax))

    @property
    def quantizer(self) -> Quantizer:
        """The quantizer with the scale and zero point that training has reached."""
        with torch.no_grad():
            scale, book = positive(self.scale), self.codebook
            return Quantizer(float(scale), int(self._zero_point(scale).round().clamp(book.qmin, book.qmax)), book)

    @property
    def shift(self) -> float:
        """How far the real offset is from that of the zero point; 0 without a real offset."""
        if not self._real:
            return 0.0
        with torch.no_grad():
            scale = positive(self.scale)
            return float((self.quantizer.zero_point - self._zero_point(scale)) * scale)

    def forward(self, values: Tensor) -> Tensor:
        """The activation, quantized and back in float."""
        scale, book = positive(self.scale), self.codebook
        factor = 1.0
        if self._scales_gradients:
            factor = gradient_scale(values.numel() // max(1, values.shape[0]), self._largest)
        limits = (self._zero_point(scale), book.qmin, book.qmax, factor)
        return fake_quantize(values, scale, *limits, real_zero_point=self._real)

    def extra_repr(self) -> str:
        return f"{self.codebook.bits} bits"
