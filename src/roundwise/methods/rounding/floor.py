"""Round every weight down: AdaRound chooses between this and rounding up for each weight.

    Ŵ = s · clip(⌊W/s⌋, qmin, qmax)                                                           (Eq. 10)

All weights move in the same direction, so that errors add up instead of cancelling: in ResNet-18's first layer alone,
this brings ImageNet accuracy down to chance (Table 1). It is here to show this, and for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True)
class Floor(RoundingSolver[Nothing]):
    """Round every weight down to the grid point below it.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Eq. 10 and Table 1.
    """

    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        grid = problem.grid
        return Rounding(grid.clip(grid.in_codes(problem.weight).floor()).to(torch.int32))
