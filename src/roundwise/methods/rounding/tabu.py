"""Tabu search: a walk over codes that goes uphill too (`numerics/search/tabu.py`), from where coordinate descent stops.

On a layer with few columns it finds better codes than the relaxation, and the default solver takes the same walk
there; on wide ones single changes lead less far (benchmarks/RESULTS.md).
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
from roundwise.numerics.search.tabu import walk
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class TabuSearch(RoundingSolver[Gram]):
    """Change one code at a time, uphill too, and remember what was best for the output before any activation function.

    Args:
        iterations: moves of every row.
        tenure: how many steps a changed code is left alone, at least; at most twice as many.
        any_code: True lets each weight have any code; False only the two next to it.
        free_bias: let the layer's bias take up the mean error, where it has one of its own.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Glover, Tabu Search, ORSA Journal on Computing 1(3), 1989.
    """

    iterations: int = 1000
    tenure: int = 10
    any_code: bool = True
    free_bias: bool = False
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"iterations and tenure must be at least 1": min(self.iterations, self.tenure) >= 1})

    @property
    def floor_or_ceil(self) -> bool:
        return not self.any_code

    def work(self, rows_per_sample: int, samples: int) -> float:
        return WORK * rows_per_sample * samples

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        def search(quadratic: Quadratic, grid: Grid, choices: Choices, _: Slope | None) -> Tensor:
            start = descend(quadratic, grid, grid.quantize(quadratic.weight), choices)
            return walk(quadratic, grid, start, choices, generator, self.iterations, self.tenure)

        return solve(problem, search, Freedom(self.any_code, self.free_bias))
