"""Coordinate descent alone: from nearest rounding, set each code to the best of its choices, until none changes.

The cheapest method that looks at the inputs, and what a relaxation must beat to be worth its time. The sweeps are in
`numerics/search/descent.py`; where they stop, no change of a single code lowers the objective, but changes of two may.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.reconstruction import WORK, Freedom, Slope, solve
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Grid
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices, descend
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class CoordinateDescent(RoundingSolver[Gram]):
    """Change one code at a time, while that lowers the error of the layer's output, before any activation function.

    Args:
        sweeps: over all columns, at most.
        any_code: True lets each weight have any code; False only the two next to it.
        free_bias: let the layer's bias take up the mean error, where it has one of its own.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Behdin et al., QuantEase, 2023, arXiv:2309.01885; with the target of Nagel et al., arXiv:2004.10568, Eq. 25.
    """

    sweeps: int = 50
    any_code: bool = True
    free_bias: bool = False
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"sweeps must be at least 1": self.sweeps >= 1})

    @property
    def floor_or_ceil(self) -> bool:
        return not self.any_code

    def work(self, rows_per_sample: int, samples: int) -> float:
        return WORK * rows_per_sample * samples

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        return solve(problem, self._search, Freedom(self.any_code, self.free_bias))

    def _search(self, quadratic: Quadratic, grid: Grid, choices: Choices, _: Slope | None) -> Tensor:
        return descend(quadratic, grid, grid.quantize(quadratic.weight), choices, self.sweeps)
