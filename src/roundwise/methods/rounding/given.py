"""Codes that are known already: found by another program, or by an earlier pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.settings import check_types
from roundwise.numerics.grid import Grid
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True, eq=False)
class Given(RoundingSolver[Nothing]):
    """Give one layer these codes: `overrides={"conv1": Weights(rounding=Given(codes))}`.

    It is in no table, because a recipe file cannot hold it: the file only says that codes were given.

    Args:
        codes: integers `[groups, rows, cols]`, in the order of `graph/matrix.py`, within the grid's codebook.
        grid: what the codes mean, if it is not the grid that the recipe asks for.
        bias_shift: to be added to the layer's bias, `[groups, rows]`.

    Raises:
        RecipeError: the codes are not a tensor; or, once the layer is reached, they do not fit it.
    """

    codes: Tensor
    grid: Grid | None = None
    bias_shift: Tensor | None = None
    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits(floor_or_ceil=False)

    def __post_init__(self) -> None:
        check_types(self)

    def __repr__(self) -> str:
        """Without the codes, since it is shown in messages and kept in files."""
        return f"Given(codes of shape {list(self.codes.shape)})"

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        codes, shape = self.codes, problem.weight.shape
        if codes.shape != shape or codes.is_floating_point():
            raise RecipeError(
                f"the codes given for layer '{problem.name}' are {codes.dtype} {list(codes.shape)}; they must be "
                f"integers of the shape of its matrix [groups, rows, cols], {list(shape)}."
            )
        return Rounding(codes.to(problem.weight.device, torch.int32), self.grid, self.bias_shift)
