"""The cross-entropy method: draw roundings at random, keep the best of them, and draw the next ones nearer to those.

Every weight has a probability p of its own to be rounded up. At first it is that of stochastic rounding (Gupta et al.,
ICML 2015): the fraction of a step that the weight lies above the lower code,

    P(v_j = 1) = p_j = W_j/s − ⌊W_j/s⌋

Each iteration draws `samples` roundings v of every row, takes those with the smallest objective, the *elite*, and moves
the probabilities towards how often the elite rounds up:

    p_j ← (1 − smoothing) p_j + smoothing · mean of v_j over the elite

A weight whose probability comes within 1 % of 0 or 1 is decided and no longer drawn. (Among hundreds of such weights a
few would be drawn the other way each time, and their errors would hide the effect of the others.) The search ends when
all are decided, or after `iterations`. The answer is the best rounding that was ever drawn.

References:
    Rubinstein, The Cross-Entropy Method for Combinatorial and Continuous Optimization, Methodology and Computing in
    Applied Probability 1(2), 1999.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from roundwise.numerics.grid import Grid
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices

DECIDED = 0.01
"""A weight is decided when its probability is nearer to 0 or 1 than this. Larger: decisions come sooner."""

SHRINK_AT = 0.1
"""The share of a row's columns that must be decided before the matrices are made smaller: a copy costs time too."""


@final
@dataclass(frozen=True)
class CrossEntropy:
    """Draw, keep the elite, repeat.

    Args:
        iterations: at most; the search ends when every probability is decided.
        samples: roundings of every row in each iteration; more find better codes, and take longer.
        elite: the share of them to learn from, above 0 and below 1.
        smoothing: how far the probabilities move towards the elite's in each iteration, above 0 and up to 1.
    """

    iterations: int = 100
    samples: int = 200
    elite: float = 0.1
    smoothing: float = 0.5

    def search(
        self, objective: Quadratic, grid: Grid, choices: Choices, generator: torch.Generator
    ) -> Int[Tensor, "groups rows cols"]:
        """The best codes drawn, row by row; each is its `choices.low` or `choices.high`.

        Args:
            objective: what is lowered.
            grid: gives scales and zero points.
            choices: the two codes of each weight.
            generator: draws the roundings; on the CPU.
        """
        groups, rows, _ = objective.weight.shape
        up = grid.quantize(objective.weight) > choices.low  # start from nearest rounding
        chance = (grid.in_codes(objective.weight) - choices.low).clamp(0, 1)
        low = grid.dequantize(choices.low) - objective.weight
        span = grid.dequantize(choices.high) - objective.weight - low
        for row in itertools.product(range(groups), range(rows)):
            of_row = _Row(objective.hessian[row[0]], objective.inherited[row], low[row], span[row])
            up[row] = self._decide(of_row, up[row], chance[row], generator)
        return torch.where(up, choices.high, choices.low).to(torch.int32)

    def _decide(
        self, row: _Row, up: Bool[Tensor, "cols"], chance: Float[Tensor, "cols"], generator: torch.Generator
    ) -> Bool[Tensor, "cols"]:
        """Which weights of a row to round up, given a first rounding and the first probabilities."""
        best, least = up, row.losses(up.unsqueeze(0))[0]
        # `settled` is the rounding of all columns; `undecided` has the numbers of those that `left` still depends on.
        settled, undecided, left = chance > 0.5, torch.arange(len(up), device=up.device), row
        count = max(1, round(self.elite * self.samples))
        for _ in range(self.iterations):
            # Drawn on the CPU so that the codes do not depend on the device.
            draws = torch.rand((self.samples, len(chance)), generator=generator).to(chance.device)
            tried = draws < chance  # [samples, undecided columns]
            losses, order = left.losses(tried).topk(count, largest=False)
            if losses[0] < least:
                best, least = settled.index_put((undecided,), tried[order[0]]), losses[0]
            chance = chance.lerp(tried[order].float().mean(0), self.smoothing)
            settled[undecided] = chance > 0.5
            decided = torch.minimum(chance, 1 - chance) < DECIDED
            chance = torch.where(decided, chance.round(), chance)
            share = float(decided.float().mean())
            if share == 1:
                break
            if share > SHRINK_AT:
                left = left.without(decided, settled[undecided])
                undecided, chance = undecided[~decided], chance[~decided]
        return settled if row.losses(settled.unsqueeze(0))[0] < least else best


@final
@dataclass(frozen=True, eq=False)
class _Row:
    """The objective of one row, less its constant, with ŵ − w = low + v · span."""

    hessian: Float[Tensor, "cols cols"]
    inherited: Float[Tensor, "cols"]
    low: Float[Tensor, "cols"]
    span: Float[Tensor, "cols"]
    constant: Tensor | float = 0.0

    def losses(self, up: Bool[Tensor, "samples cols"]) -> Float[Tensor, "samples"]:
        """The objective of many roundings at once."""
        difference = torch.addcmul(self.low, up, self.span)
        return ((difference @ self.hessian).sub_(2 * self.inherited).mul_(difference)).sum(-1) + self.constant

    def without(self, gone: Bool[Tensor, "cols"], up: Bool[Tensor, "cols"]) -> _Row:
        """The objective as a function of the other columns alone, while those that are `gone` stay rounded as `up`."""
        stay = ~gone
        fixed = (self.low + up * self.span)[gone]
        across = self.hessian[gone]
        return _Row(
            self.hessian[stay][:, stay],
            self.inherited[stay] - fixed @ across[:, stay],
            self.low[stay],
            self.span[stay],
            self.constant + ((fixed @ across[:, gone] - 2 * self.inherited[gone]) * fixed).sum(),
        )
