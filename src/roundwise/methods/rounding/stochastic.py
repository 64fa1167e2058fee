"""Stochastic rounding: up with the probability of the fraction, so that the expected weight is the weight itself.

    P(⌈W/s⌉) = W/s − ⌊W/s⌋

Table 1 of the AdaRound paper draws a hundred of these roundings for one layer: about half of them are more accurate
than nearest rounding, the best by ten points. The paper starts from this observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True)
class Stochastic(RoundingSolver[Nothing]):
    """Round up or down at random, so that the expected weight is the weight itself.

    References:
        Gupta et al., ICML 2015, arXiv:1502.02551, Section 3.1.
    """

    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        grid = problem.grid
        in_codes = grid.in_codes(problem.weight)
        floor = in_codes.floor()
        # Drawn on the CPU so that the codes do not depend on the device.
        chance = torch.rand(in_codes.shape, generator=generator).to(in_codes.device)
        return Rounding(grid.clip(floor + (chance < in_codes - floor)).to(torch.int32))
