"""The cross-entropy method: draw roundings at random, and learn from the best of them how to draw the next ones.

    1. Q ← the quadratic, from the second moments of the samples (`methods/reconstruction/objectives.py`).
    2. codes ← the best rounding drawn, by Q, row by row (`numerics/search/cross_entropy.py`).
    3. The bias takes up the mean error, where it is free.
    4. Keep nearest rounding instead where its error on the held-out samples is smaller.

The AdaRound paper solves the quadratic problems of its Eqs. 13 and 20 like this, before it introduces AdaRound (Section
5, Table 2). An iteration costs `samples` products of the weights with H; the paper speaks of hours for a network. The
method needs no gradient and no positive curvature, so it is a check on the methods that do.
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
from roundwise.numerics.search.cross_entropy import CrossEntropy
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class CrossEntropyMethod(RoundingSolver[Gram]):
    """Draw roundings and learn from the best, for the output before any nonlinearity.

    Args:
        iterations: at most; it ends when every probability is decided.
        samples: roundings of every row in each iteration; more find better ones, and take longer.
        elite: the share of them to learn from, above 0 and below 1.
        smoothing: how far the probabilities move towards the elite's in each iteration, above 0 and up to 1.
        free_bias: let the layer's bias take up the mean error, where it has one of its own.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Rubinstein, The Cross-Entropy Method for Combinatorial and Continuous Optimization, Methodology and Computing in
        Applied Probability 1(2), 1999; as in Nagel et al., ICML 2020, arXiv:2004.10568, Section 5.
    """

    iterations: int = 100
    samples: int = 200
    elite: float = 0.1
    smoothing: float = 0.5
    free_bias: bool = False
    needs: ClassVar[type] = Gram
    traits: ClassVar[Traits] = Traits()

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(
            self,
            {
                "there must be at least 1 iteration, and 2 samples in each": self.iterations >= 1 and self.samples >= 2,
                "elite must be above 0 and below 1": 0 < self.elite < 1,
                "smoothing must be above 0 and up to 1": 0 < self.smoothing <= 1,
            },
        )

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        fit = Objectives.of(problem, free_bias=self.free_bias)
        choices = Choices.floor_or_ceil(problem.grid, problem.weight)
        draw = CrossEntropy(self.iterations, self.samples, self.elite, self.smoothing)
        codes = draw.search(fit.plain, problem.grid, choices, generator)
        return as_rounding(problem, *judge(fit, fit.no_worse_than_nearest(codes)))
