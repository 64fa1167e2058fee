"""The codes that a search may give each weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.grid import Grid


@final
@dataclass(frozen=True, eq=False)
class Choices:
    """Every code from `low` to `high`, both as floats."""

    low: Float[Tensor, "groups rows cols"]
    high: Float[Tensor, "groups rows cols"]

    @classmethod
    def all(cls, grid: Grid, weight: Float[Tensor, "groups rows cols"]) -> Choices:
        """Every code of the grid."""
        book = grid.codebook
        return cls(torch.full_like(weight, book.qmin), torch.full_like(weight, book.qmax))

    @classmethod
    def floor_or_ceil(cls, grid: Grid, weight: Float[Tensor, "groups rows cols"]) -> Choices:
        """The two codes next to each weight (Eq. 9 of the AdaRound paper), clipped to the grid."""
        floor = grid.in_codes(weight).floor()
        return cls(grid.clip(floor), grid.clip(floor + 1))
