"""Tabu search: from where coordinate descent ends, go on changing codes, uphill too, and keep the best codes met.

    1. Q ← the quadratic, from the second moments of the samples (`methods/reconstruction/objectives.py`).
    2. codes ← coordinate descent on Q from nearest rounding (`numerics/search/descent.py`).
    3. codes ← the best codes that a tabu search on Q meets from there (`numerics/search/tabu.py`).
    4. The bias takes up the mean error, where it is free.
    5. Keep nearest rounding instead where its error on the held-out samples is smaller.

On a layer with few columns it finds better codes than the relaxation of AdaRound, and the default solver takes the same
search there. With many columns, changes of one code at a time lead less far (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.reconstruction.objectives import Objectives, as_rounding
from roundwise.methods.reconstruction.referee import judge
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.descent import Descent
from roundwise.numerics.search.tabu import Tabu
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class TabuSearch(RoundingSolver[Gram]):
    """Change one code at a time, uphill too, and keep the codes that were best for the output before any nonlinearity.

    Args:
        moves: of every row; each changes one code by one.
        tenure: a changed code stays as it is for at least this many moves, and for at most twice as many.
        any_code: True lets each weight have any code; False only the two next to it.
        free_bias: let the layer's bias take up the mean error, where it has one of its own.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Glover, Tabu Search, ORSA Journal on Computing 1(3), 1989.
    """

    moves: int = 1000
    tenure: int = 10
    any_code: bool = True
    free_bias: bool = False
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"moves and tenure must be at least 1": min(self.moves, self.tenure) >= 1})

    @property
    def traits(self) -> Traits:
        return Traits(floor_or_ceil=not self.any_code)

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        objectives, grid = Objectives.of(problem, free_bias=self.free_bias), problem.grid
        choices = (Choices.all if self.any_code else Choices.floor_or_ceil)(grid, problem.weight)
        start = Descent().search(objectives.plain, grid, objectives.nearest.codes, choices)
        codes = Tabu(self.moves, self.tenure).search(objectives.plain, grid, start, choices, generator)
        return as_rounding(problem, *judge(objectives, objectives.no_worse_than_nearest(codes)))
