"""Round to nearest: the baseline that every other solver must beat.

Ŵ = s · (clip(⌊W/s⌉ + z, qmin, qmax) − z)              (Eq. 1 of the AdaRound paper, with a zero point z)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True)
class Nearest(RoundingSolver[Nothing]):
    """Round every weight to its nearest grid point, ties to even.

    References:
        Jacob et al., CVPR 2018, arXiv:1712.05877, Section 2.1; Nagel et al., ICML 2020, arXiv:2004.10568, Eq. 1.
    """

    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        return Rounding(problem.grid.quantize(problem.weight))
