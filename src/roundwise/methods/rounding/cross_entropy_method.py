"""The cross-entropy method: sample roundings, keep the best of them, and sample again nearer to those.

Every weight has a probability of its own to be rounded up, at first that of stochastic rounding (Gupta et al., 2015):

    P(v_j = 1) = p_j = W_j/s − ⌊W_j/s⌋

Each iteration draws `samples` roundings v of every row, takes those with the least objective, the *elite*, and moves
the probabilities towards how often the elite rounds up:

    p_j ← (1 − smoothing) p_j + smoothing · mean of v_j over the elite

A weight whose probability comes within 1 % of 0 or 1 is decided and no longer drawn: among hundreds of them a few would
still be drawn the other way each time, which hides what the others do. It ends when all are decided, or after
`iterations`. The answer is the best rounding that was ever drawn, or nearest rounding where none is better. So the
paper solves the quadratic problems of Eqs. 13 and 20 before it has AdaRound (Section 5, Table 2).

An iteration costs what `samples` products of the layer's weights with H cost; the paper speaks of hours for a network.
It needs no gradient, and no sign of the objective's curvature: it is a check on the methods that do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.reconstruction import WORK, Freedom, Slope, solve
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Grid
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices
from roundwise.statistics import Gram

DECIDED = 0.01
"""A probability nearer to 0 or 1 than this is no longer a question."""

WORTH_IT = 0.1
"""The share of the columns that must be decided before a smaller matrix is made for the others."""


@final
@dataclass(frozen=True)
class CrossEntropyMethod(RoundingSolver[Gram]):
    """Sample roundings and learn from the best, for the output before any activation function.

    Args:
        iterations: at most; it ends when every probability is decided.
        samples: roundings of every row in each iteration; more find better ones, and take longer.
        elite: the share of them to learn from, above 0 and below 1.
        smoothing: how far the probabilities go towards the elite's at each iteration, above 0 and up to 1.
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

    def work(self, rows_per_sample: int, samples: int) -> float:
        return WORK * rows_per_sample * samples

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        def search(quadratic: Quadratic, grid: Grid, choices: Choices, _: Slope | None) -> Tensor:
            return self.sample(quadratic, grid, choices, generator)

        return solve(problem, search, Freedom(any_code=False, free_bias=self.free_bias))

    def sample(self, quadratic: Quadratic, grid: Grid, choices: Choices, generator: torch.Generator) -> Tensor:
        """The best codes that were drawn, row by row; each is `choices.low` or `choices.high`."""
        groups, rows, _ = quadratic.weight.shape
        up = grid.quantize(quadratic.weight) > choices.low
        chance = (grid.position(quadratic.weight) - choices.low).clamp(0, 1)
        low = grid.dequantize(choices.low) - quadratic.weight
        span = grid.dequantize(choices.high) - quadratic.weight - low
        for row in itertools.product(range(groups), range(rows)):
            objective = _Row(quadratic.hessian[row[0]], quadratic.pull[row], low[row], span[row])
            up[row] = self._decide(objective, up[row], chance[row], generator)
        return torch.where(up, choices.high, choices.low).to(torch.int32)

    def _decide(self, objective: _Row, up: Tensor, chance: Tensor, generator: torch.Generator) -> Tensor:
        """Which weights of a row to round up, from a first idea and the probabilities to begin with."""
        best, least = up, objective(up.unsqueeze(0))[0]
        settled, undecided, left = chance > 0.5, torch.arange(len(up), device=up.device), objective
        count = max(1, round(self.elite * self.samples))
        for _ in range(self.iterations):
            # Drawn on the CPU so that the codes do not depend on the device.
            draws = torch.rand((self.samples, len(chance)), generator=generator).to(chance.device)
            tried = draws < chance
            losses, order = left(tried).topk(count, largest=False)
            if losses[0] < least:
                best, least = settled.index_put((undecided,), tried[order[0]]), losses[0]
            chance = chance.lerp(tried[order].float().mean(0), self.smoothing)
            settled[undecided] = chance > 0.5
            decided = torch.minimum(chance, 1 - chance) < DECIDED
            chance = torch.where(decided, chance.round(), chance)
            share = float(decided.float().mean())
            if share == 1:
                break
            if share > WORTH_IT:
                left = left.without(decided, settled[undecided])
                undecided, chance = undecided[~decided], chance[~decided]
        return settled if objective(settled.unsqueeze(0))[0] < least else best


@final
@dataclass(frozen=True, eq=False)
class _Row:
    """The objective of a row, less its constant, for many roundings at once."""

    hessian: Float[Tensor, "cols cols"]
    pull: Float[Tensor, "cols"]
    low: Float[Tensor, "cols"]
    span: Float[Tensor, "cols"]
    constant: Tensor | float = 0.0

    def __call__(self, up: Bool[Tensor, "samples cols"]) -> Float[Tensor, "samples"]:
        difference = torch.addcmul(self.low, up, self.span)
        return ((difference @ self.hessian).sub_(2 * self.pull).mul_(difference)).sum(-1) + self.constant

    def without(self, gone: Bool[Tensor, "cols"], up: Bool[Tensor, "cols"]) -> _Row:
        """The same of the other columns alone, where these stay rounded as `up` says."""
        stay = ~gone
        fixed = (self.low + up * self.span)[gone]
        across = self.hessian[gone]
        return _Row(
            self.hessian[stay][:, stay],
            self.pull[stay] - fixed @ across[:, stay],
            self.low[stay],
            self.span[stay],
            self.constant + ((fixed @ across[:, gone] - 2 * self.pull[gone]) * fixed).sum(),
        )
