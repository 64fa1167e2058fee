"""Coordinate descent alone: start from nearest rounding, and set one code at a time to the best of its choices.

    1. Q ← the quadratic, from the second moments of the samples (`methods/reconstruction/objectives.py`).
    2. codes ← coordinate descent on Q from nearest rounding, until no code changes (`numerics/search/descent.py`).
    3. The bias takes up the mean error, where it is free.
    4. Keep nearest rounding instead where its error on the held-out samples is smaller.

It is the cheapest method that looks at the inputs; a method that takes longer should find better codes. Where it ends,
no change of one code lowers Q, but changes of two codes may.
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
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class CoordinateDescent(RoundingSolver[Gram]):
    """Change one code at a time, while that lowers the error of the layer's output, before any nonlinearity.

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
    def traits(self) -> Traits:
        return Traits(floor_or_ceil=not self.any_code)

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        fit = Objectives.of(problem, free_bias=self.free_bias)
        choices = (Choices.all if self.any_code else Choices.floor_or_ceil)(problem.grid, problem.weight)
        codes = Descent(self.sweeps).search(fit.plain, problem.grid, fit.nearest.codes, choices)
        return as_rounding(problem, *judge(fit, fit.no_worse_than_nearest(codes)))
