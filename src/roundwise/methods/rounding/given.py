"""Codes that are known already: chosen by other means, or by an earlier pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.numerics.grid import Grid
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True, eq=False)
class Given(RoundingSolver[Nothing]):
    """Take these codes for the one layer that they are for: `overrides={"conv1": Weights(rounding=Given(codes))}`.

    It is in no table, since a recipe file cannot hold it: such a file tells that codes were given, and not which.

    Args:
        codes: integers `[groups, rows, cols]` (`graph/matrix.py` has the order), within the grid's codebook.
        grid: what they mean, if it is not the grid that the recipe asks for.
        bias_shift: to be added to the layer's bias, `[groups, rows]`.

    Raises:
        RecipeError: once the layer is reached, if the codes do not fit it.
    """

    codes: Tensor
    grid: Grid | None = None
    bias_shift: Tensor | None = None
    needs: ClassVar[type] = Nothing

    def __repr__(self) -> str:
        """Without the codes: it stands in messages, and in files."""
        return f"Given(codes of shape {list(self.codes.shape)})"

    @property
    def floor_or_ceil(self) -> bool:
        return False

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        codes, shape = self.codes, problem.weight.shape
        if codes.shape != shape or codes.is_floating_point():
            raise RecipeError(
                f"the codes given for layer '{problem.name}' are {codes.dtype} {list(codes.shape)}; they must be "
                f"integers of the shape of its matrix [groups, rows, cols], {list(shape)}."
            )
        return Rounding(codes.to(problem.weight.device, torch.int32), self.grid, self.bias_shift)
