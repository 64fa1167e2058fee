"""The quantization grid: the real numbers that integer codes stand for.

    ŵ = s · (q − z),        q = clip(⌊w/s⌉ + z, qmin, qmax)        (with z = 0 this is Eq. 1 of the AdaRound paper)

A symmetric grid has z = 0 and codes −2^(b−1) … 2^(b−1) − 1. An asymmetric grid has codes 0 … 2^b − 1 and an integer
zero point z. In both, 0.0 is exactly on the grid.

Weights are matrices `[groups, rows, cols]` (see `graph/matrix.py`) with one row per output channel. The *granularity*
says which weights share a scale. The scales have the shape `[groups, rows, blocks]`, where a block is a run of
neighbouring columns; a dimension of size 1 means that the scale is shared along it:

    PerTensor()      [1, 1, 1]              one scale for the layer
    PerChannel()     [groups, rows, 1]      one scale per output channel
    PerGroup(size)   [groups, rows, cols/size]
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.errors import RecipeError

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
"""The numbers of bits that a code can have."""

SMALLEST_SCALE = 1e-30
"""A scale of at most 1e-30 is treated as 0, as for an interval with only 0.0 in it. Near the smallest float32 numbers
(1e-38) scales would lose digits; with a larger value, tiny weights would all become 0."""


@final
@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole weight tensor (the paper's setting)."""


@final
@dataclass(frozen=True)
class PerChannel:
    """One scale for each output channel."""


@final
@dataclass(frozen=True)
class PerGroup:
    """One scale for each run of `size` neighbouring columns of each output channel.

    A column is one input of the dot product: for a convolution, input channels times kernel positions.
    """

    size: int

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 2:
            raise RecipeError(
                f"PerGroup(size={self.size!r}): a group is a whole number (an int) of columns, 2 or more, since a "
                "scale for every weight would take more memory than it saves. Choose 32 to 128, the usual sizes."
            )


Granularity = PerTensor | PerChannel | PerGroup


@final
@dataclass(frozen=True)
class Codebook:
    """The integers that codes may be: `bits` wide, symmetric (signed) or not (unsigned).

    Args:
        bits: one of 2 to 8, or 16.
        symmetric: True gives qmin = −2^(bits−1), qmax = 2^(bits−1) − 1 and zero point 0; False gives 0 to 2^bits − 1.

    Raises:
        RecipeError: `bits` is not in `BITS`, or a setting has the wrong type.

    Example:
        >>> Codebook(4).qmin, Codebook(4).qmax
        (-8, 7)
        >>> Codebook(4, symmetric=False).qmax
        15
    """

    bits: int
    symmetric: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in BITS:
            raise RecipeError(
                f"bits={self.bits!r}: a code can have 2 to 8 bits, or 16, given as an int. Choose one of these."
            )
        if type(self.symmetric) is not bool:
            raise RecipeError(
                f"symmetric={self.symmetric!r}: write True for signed codes around 0, or False for unsigned codes with "
                "a zero point."
            )

    @property
    def qmin(self) -> int:
        """The smallest code, inclusive."""
        return -(1 << self.bits - 1) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The largest code, inclusive."""
        return (1 << self.bits - 1) - 1 if self.symmetric else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The smallest dtype that holds one code per element and that PyTorch can compute with."""
        if self.bits == 16:
            return torch.int16 if self.symmetric else torch.int32
        return torch.int8 if self.symmetric else torch.uint8


@final
@dataclass(frozen=True)
class Grid:
    """Scale, zero point and codebook for one weight matrix.

    Attributes:
        scale: step in real units per code, > 0; float32, `[groups | 1, rows | 1, blocks]`.
        zero_point: the code of 0.0, int32, same shape as `scale`; all zero on a symmetric grid.
        codebook: the integers that codes may be.

    All methods take and return matrices `[groups, rows, cols]`; `cols` must be a multiple of `blocks`.

    Example:
        >>> grid = Grid.symmetric(torch.tensor([[[0.5]]]), bits=4)
        >>> grid.fake_quantize(torch.tensor([[[0.6, -9.0]]]))
        tensor([[[ 0.5000, -4.0000]]])
    """

    scale: Float[Tensor, "groups rows blocks"]
    zero_point: Int[Tensor, "groups rows blocks"]
    codebook: Codebook

    @classmethod
    def symmetric(cls, scale: Float[Tensor, "groups rows blocks"], bits: int) -> Grid:
        """A symmetric grid with the given scales."""
        return cls(scale, torch.zeros_like(scale, dtype=torch.int32), Codebook(bits))

    @property
    def granularity_shape(self) -> tuple[int, int, int]:
        """`(groups | 1, rows | 1, blocks)`: the number of scales along each dimension."""
        groups, rows, blocks = self.scale.shape
        return groups, rows, blocks

    def scales(self, cols: int) -> Float[Tensor, "groups rows cols"]:
        """The scale of every weight: `scale` repeated over the columns of each block; a single block is broadcast."""
        return expand_blocks(self.scale, cols)

    def in_codes(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows cols"]:
        """Each weight in codes instead of real units: w/s + z, neither rounded nor clipped."""
        cols = weight.shape[-1]
        return weight.float() / self.scales(cols) + expand_blocks(self.zero_point, cols)

    def clip(self, codes: Tensor) -> Tensor:
        """Clip codes, or weights in codes, to `qmin` … `qmax`."""
        return codes.clamp(self.codebook.qmin, self.codebook.qmax)

    def quantize(self, weight: Float[Tensor, "groups rows cols"]) -> Int[Tensor, "groups rows cols"]:
        """The nearest codes, ties to even, clipped to the codebook."""
        return self.clip(self.in_codes(weight).round()).to(torch.int32)

    def dequantize(self, codes: Tensor) -> Float[Tensor, "groups rows cols"]:
        """The real numbers that codes stand for: s · (q − z). Accepts soft (fractional) codes too."""
        cols = codes.shape[-1]
        return (codes - expand_blocks(self.zero_point, cols)) * self.scales(cols)

    def fake_quantize(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows cols"]:
        """Quantize to the nearest code, then back to float."""
        return self.dequantize(self.quantize(weight))


def expand_blocks(per_block: Tensor, cols: int) -> Tensor:
    """From `[…, blocks]` to `[…, cols]` by repetition; a single block is returned unchanged, since it broadcasts."""
    blocks = per_block.shape[-1]
    return per_block if blocks == 1 else per_block.repeat_interleave(cols // blocks, dim=-1)


def blocked(matrix: Tensor, granularity: Granularity, layer: str) -> Tensor:
    """View a matrix `[groups, rows, cols]` as `[groups', rows', blocks, size]`: the last dimension shares a scale.

    Raises:
        RecipeError: the columns do not divide into groups of the chosen size.
    """
    groups, rows, cols = matrix.shape
    check_groups([(layer, cols, granularity)])
    match granularity:
        case PerTensor():
            return matrix.reshape(1, 1, 1, -1)
        case PerChannel():
            return matrix.reshape(groups, rows, 1, cols)
        case PerGroup(size):
            return matrix.reshape(groups, rows, cols // size, size)


def check_groups(layers: Iterable[tuple[str, int, Granularity]]) -> None:
    """Raise unless the columns of every layer divide into its groups; `layers` has name, columns and granularity.

    Raises:
        RecipeError: names the first layer whose columns do not, and the sizes that fit all layers.
    """
    grouped = [(layer, cols, kind.size) for layer, cols, kind in layers if isinstance(kind, PerGroup)]
    misfits = [(layer, cols, size) for layer, cols, size in grouped if cols % size]
    if not misfits:
        return
    layer, cols, size = misfits[0]
    others = f" ({len(misfits)} of {len(grouped)} layers do not fit their groups)" if len(grouped) > 1 else ""
    common = math.gcd(*(cols for _, cols, _ in grouped))
    sizes = [str(divisor) for divisor in range(2, common + 1) if common % divisor == 0]
    choose = f"Choose a size among {', '.join(sizes)}, or give" if sizes else "No size fits them all: give"
    raise RecipeError(
        f"layer '{layer}' has {cols} columns, which do not divide into groups of {size}{others}. {choose} such "
        f"layers another granularity (--override {layer}=per-channel) or float weights (--override {layer}=float)."
    )


def affine_grid(low: Tensor, high: Tensor, codebook: Codebook) -> Grid:
    """The grid whose codes reach from `low` (≤ 0) to `high` (≥ 0); both `[groups | 1, rows | 1, blocks]`, float32.

        symmetric    s = max(high / qmax, low / qmin)                           0 ↔ code 0
        asymmetric   s = (high − low) / (qmax − qmin),   z = clip(⌊qmin − low/s⌉, qmin, qmax)

    The interval is extended to contain 0.0, so that 0.0 is exactly on the grid. If it contains nothing else, the scale
    is 1.
    """
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if codebook.symmetric:
        scale = positive_scale(torch.maximum(high / codebook.qmax, low / codebook.qmin))
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), codebook)
    levels = codebook.qmax - codebook.qmin
    scale = positive_scale(high / levels - low / levels)  # divide first: high − low could overflow
    zero_point = (codebook.qmin - low / scale).round().clamp(codebook.qmin, codebook.qmax)
    return Grid(scale, zero_point.to(torch.int32), codebook)


def positive_scale(scale: Tensor) -> Tensor:
    """The scale, or 1 where it is at most `SMALLEST_SCALE`."""
    return torch.where(scale > SMALLEST_SCALE, scale, torch.ones_like(scale))
