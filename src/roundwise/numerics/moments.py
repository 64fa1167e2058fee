"""Second moments of inputs and targets: sums over positions, and the positions themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

STRIP = 192
"""Columns of Σ x̂ x̂ᵀ in one product. Narrower ones skip more of the upper triangle, but their products are slower."""


class Pairs(NamedTuple):
    """Unfolded inputs and targets of some positions, both in the memory order that `LinearMap.pairs_at` gives them."""

    columns: Float[Tensor, "groups pairs cols"]
    targets: Float[Tensor, "groups pairs rows"]

    def strided(self, stride: int, start: int) -> Pairs:
        """Every `stride`-th position, from number `start` on."""
        places = slice(start, None, stride)
        return Pairs(*(v.mT[..., places].contiguous().mT if side_by_side(v) else v[:, places] for v in self))

    def outputs(
        self, matrix: Float[Tensor, "groups rows cols"], bias: Float[Tensor, "groups rows"]
    ) -> Float[Tensor, "groups pairs rows"]:
        """The layer's outputs with these weights and this bias, in the memory order of the columns."""
        if side_by_side(self.columns):
            return torch.baddbmm(bias.unsqueeze(2), matrix, self.columns.mT).mT
        return torch.baddbmm(bias.unsqueeze(1), self.columns, matrix.mT)


@final
@dataclass(eq=False)
class Moments:
    """The sums over some positions.

    Attributes:
        count: number of positions.
        lower: Σ x̂ x̂ᵀ on and below the diagonal; what stands above it is unfinished, and not to be read.
        cross: Σ y x̂ᵀ.
        inputs, targets: Σ x̂ and Σ y.
        energy: Σ y².
    """

    count: int
    lower: Float[Tensor, "groups cols cols"]
    cross: Float[Tensor, "groups rows cols"]
    inputs: Float[Tensor, "groups cols"]
    targets: Float[Tensor, "groups rows"]
    energy: Float[Tensor, "groups rows"]

    @classmethod
    def zeros(cls, shape: tuple[int, int, int], device: torch.device) -> Moments:
        """The sums over nothing, for a matrix of `(groups, rows, cols)`."""
        groups, rows, cols = shape
        shapes = (groups, cols, cols), (groups, rows, cols), (groups, cols), (groups, rows), (groups, rows)
        return cls(0, *(torch.zeros(shape, dtype=torch.float32, device=device) for shape in shapes))

    def add(self, pairs: Pairs) -> None:
        """Add some more positions to the sums."""
        columns, targets = pairs
        self.count += columns.shape[1]
        for start in range(0, columns.shape[2], STRIP):
            strip = slice(start, start + STRIP)
            self.lower[:, strip, : strip.stop].baddbmm_(columns[..., strip].mT, columns[..., : strip.stop])
        self.cross.baddbmm_(targets.mT, columns)
        self.inputs += columns.sum(1)
        self.targets += targets.sum(1)
        self.energy += targets.square().sum(1)

    @property
    def second(self) -> Float[Tensor, "groups cols cols"]:
        """Σ x̂ x̂ᵀ, whole."""
        whole = self.lower.tril()
        whole += whole.tril(-1).mT
        return whole

    def merge(self, other: Moments) -> Moments:
        """The sums over the positions of both."""
        return Moments(
            self.count + other.count,
            self.lower + other.lower,
            self.cross + other.cross,
            self.inputs + other.inputs,
            self.targets + other.targets,
            self.energy + other.energy,
        )


def side_by_side(values: Tensor) -> bool:
    """Whether the positions of a column (of inputs or of outputs) lie next to each other in memory."""
    return values.mT.is_contiguous() and not values.is_contiguous()
