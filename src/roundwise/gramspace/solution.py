"""What stands around a search for codes: the bias, the scale and the activation function take their turns with it.

    codes ← search                                       for H and C of the samples
    repeat:  scale ← best for the codes                  (closed form)         codes ← descend
             targets ← for the activation function       (majorisation)        codes ← descend

*Activation by majorisation.* A search may follow the activation function on its way, with a part of the samples at a
time; then the turns do so with all of them. For f_a = clamp(·, l, u), ReLU and ReLU6 among them, and ẑ the current
output, let

    t = y             where l < y < u
        min(ẑ, l)     where y ≤ l
        max(ẑ, u)     where y ≥ u

Then (f_a(y) − f_a(z))² ≤ (t − z)² for every z, with equality at z = ẑ wherever ẑ is inside its limits or y is not. So
lowering the quadratic on the right lowers the objective with its activation function (Eq. 25). Where y is inside its
limits and ẑ is not, the bound is not tight and progress is not certain; therefore the objective itself is measured at
every turn, and the best is kept. Other activation functions are left out of the objective: their curvature would
give each output channel a matrix H of its own.

*Damping.* A few hundred samples do not show all directions that inputs can take, and codes that fit what was seen too
closely err on what was not. Adding to the diagonal of H is what the objective would be if inputs had some noise of
their own: it charges for every departure from the float weights. How much is a question of how many samples there are
for how many columns, which `Quadratic.damped` answers.

*Never worse than nearest.* Nearest rounding is among the candidates, so on the samples that a rounding was chosen by,
it is not worse. On those that were held out they are compared again, nearest rounding both with the bias as it was and
with the bias that is best for it; if one of these is better there, the layer keeps it and the report says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.gramspace.descent import Choices, descend
from roundwise.gramspace.quadratic import Quadratic
from roundwise.grid import Grid
from roundwise.problem import Problem, Rounding
from roundwise.statistics import Gram, Moments

Follow = Callable[[Tensor], Quadratic]
"""From weights on the way to a solution, the objective with targets for the activation function there."""

Search = Callable[[Quadratic, Grid, Choices, Follow | None], Tensor]
"""Codes `[groups, rows, cols]` for an objective, each within its choices; `Follow` where a clamp follows the layer."""

PARTS = 8
"""Targets are followed on one part of the samples at a time, of so many."""

ENOUGH = 8
"""Positions per column that such a part must have; with fewer, its noise does more harm than following does good."""

Limits = tuple[float, float]

WORK = 20.0
"""About how many forward passes of the layer the moments and a solution take: 15 on ResNet-20, 30 on MobileNetV1."""


@final
@dataclass(frozen=True)
class Freedom:
    """What may change beside the rounding.

    Attributes:
        any_code: each weight may get any code of the grid, not just the two next to it.
        free_bias: the layer's bias takes up the mean error.
        fit_scale: the scales follow the codes.
        turns: how often scale and targets are set anew.
        damping: how strongly weights are held to the float ones (`Quadratic.damped`).
    """

    any_code: bool = False
    free_bias: bool = False
    fit_scale: bool = False
    turns: int = 0
    damping: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class _Candidate:
    """Codes on a grid, with the layer's bias."""

    codes: Int[Tensor, "groups rows cols"]
    grid: Grid
    bias: Float[Tensor, "groups rows"]

    def outputs(self, columns: Float[Tensor, "groups pairs cols"]) -> Float[Tensor, "groups pairs rows"]:
        """What the layer gives for unfolded inputs."""
        return torch.baddbmm(self.bias.unsqueeze(1), columns, self.grid.dequantize(self.codes).mT)


def solve(problem: Problem[Gram], search: Search, freedom: Freedom) -> Rounding:
    """Choose codes by `search`, and whatever else is free."""
    turns = _Turns(problem, search, freedom)
    nearest, chosen = turns.nearest, turns.best()
    note = "" if problem.statistics.held_out.count else "of a single sample nothing can be held out to check it on"
    if problem.statistics.held_out.count:
        others = (nearest, turns.nearest_with_bias()) if turns.free_bias else (nearest,)
        error, *errors = turns.held_out_losses(chosen, *others)
        least = min(errors)
        noise = 1e-6 * error + 1e-9 * float(problem.statistics.held_out.energy.sum())
        if least < error - noise:
            chosen = others[errors.index(least)]
            note = f"keeps nearest rounding: its error on held-out samples is {least / error:.3f} of the other codes'"
    grid = None if chosen.grid is nearest.grid else chosen.grid
    shift = None if chosen.bias is nearest.bias else chosen.bias - nearest.bias
    return Rounding(chosen.codes, grid, shift, note)


@final
class _Turns:
    """One problem on its way to a solution."""

    def __init__(self, problem: Problem[Gram], search: Search, freedom: Freedom) -> None:
        self._weight, self._grid, self._statistics = problem.weight, problem.grid, problem.statistics
        self._search, self._freedom = search, freedom
        self._limits = None if problem.activation is None else problem.activation.limits
        bias = torch.zeros(self._weight.shape[:2], dtype=torch.float32, device=self._weight.device)
        if self._statistics.layer.bias is not None:
            bias = self._statistics.layer.bias.float().reshape(bias.shape)
        self.free_bias = freedom.free_bias and problem.bias_is_free
        self.nearest = _Candidate(self._grid.quantize(self._weight), self._grid, bias)

    def best(self) -> _Candidate:
        """The best candidate on the samples to choose by."""
        plain = self._plain(self._statistics.fit)
        quadratic = plain.damped(self._freedom.damping)
        # Where the scale will move too, a search that follows ends in worse networks (benchmarks/RESULTS.md).
        enough = self._statistics.fit.count >= PARTS * ENOUGH * self._weight.shape[2] and not self._freedom.fit_scale
        follow = self._follow(quadratic, self._limits) if self._limits and self._freedom.turns and enough else None
        codes = self._search(quadratic, self._grid, self._choices(self._grid), follow).to(torch.int32)
        # Row by row no worse than nearest rounding; and after the scale has moved, as a whole.
        loss, loss_nearest = (plain.loss(self._grid.dequantize(it)) for it in (codes, self.nearest.codes))
        if follow is None:
            codes = torch.where((loss_nearest < loss).unsqueeze(-1), self.nearest.codes, codes)
        else:  # what was found is for other targets, by which the scale must not be judged
            quadratic = follow(self._grid.dequantize(codes))
        current = self._with_scale(quadratic, self._grid, codes, self._freedom.turns)
        if self._limits is None or not self._freedom.turns:
            worse = plain.loss(current.grid.dequantize(current.codes)).sum() > loss_nearest.sum()
            return self._with_bias(plain, self._grid, self.nearest.codes) if worse else current

        best, least = self.nearest, float("inf")
        for turn in range(self._freedom.turns + 1):
            # The nearest rounding is measured once, beside the first candidate.
            moments, losses = self._retarget(self._limits, current, *([self.nearest] if turn == 0 else []))
            for candidate, error in zip([current, self.nearest], losses, strict=False):
                if error < least:
                    best, least = candidate, error
            if turn < self._freedom.turns:
                quadratic = self._objective(moments)
                codes = descend(quadratic, current.grid, current.codes, self._choices(current.grid))
                current = self._with_scale(quadratic, current.grid, codes, 1)
        return best

    def _follow(self, quadratic: Quadratic, limits: Limits) -> Follow:
        """Targets for the activation function, from one part of the samples after the other."""
        low, high = limits
        current, part = quadratic, -1

        def follow(matrix: Tensor) -> Quadratic:
            nonlocal current, part
            part += 1
            bias = (self.nearest.bias + current.shift(matrix)).unsqueeze(1)
            cross, mean = torch.zeros_like(matrix), torch.zeros_like(self.nearest.bias)
            count = 0
            for columns, y in self._statistics.again(part=part, parts=PARTS):
                z = torch.baddbmm(bias, columns, matrix.mT)
                # t − y, which is 0 where y is inside its limits
                change = torch.where(y <= low, z.clamp(max=low) - y, torch.where(y >= high, z.clamp(min=high) - y, 0.0))
                cross.baddbmm_(change.mT, columns)
                mean += change.sum(1)
                count += columns.shape[1]
            current = quadratic.with_targets(cross / count, mean / count)
            return current

        return follow

    def nearest_with_bias(self) -> _Candidate:
        """Nearest rounding, the bias taking up its mean error."""
        return self._with_bias(self._plain(self._statistics.fit), self._grid, self.nearest.codes)

    def held_out_losses(self, *candidates: _Candidate) -> list[float]:
        """The objective, with its activation function, on the samples that were held out."""
        totals = [0.0] * len(candidates)
        low, high = self._limits or (-torch.inf, torch.inf)
        for columns, y in self._statistics.again(held_out=True):
            for index, candidate in enumerate(candidates):
                z = candidate.outputs(columns)
                totals[index] += float((y.clamp(low, high) - z.clamp_(low, high)).square_().sum())
        return totals

    def _objective(self, moments: Moments) -> Quadratic:
        """The objective for some targets, damped."""
        return self._plain(moments).damped(self._freedom.damping)

    def _plain(self, moments: Moments) -> Quadratic:
        return Quadratic.of(moments, self._weight, self.nearest.bias, free_bias=self.free_bias)

    def _choices(self, grid: Grid) -> Choices:
        if self._freedom.any_code:
            return Choices.all(grid, self._weight)
        return Choices.floor_or_ceil(self._grid, self._weight)

    def _with_scale(self, quadratic: Quadratic, grid: Grid, codes: Tensor, times: int) -> _Candidate:
        """Scale and codes in turn, each the best for the other; then the bias."""
        for _ in range(times if self._freedom.fit_scale else 0):
            grid = quadratic.best_scale(grid, codes)
            before, codes = codes, descend(quadratic, grid, codes, self._choices(grid))
            if torch.equal(before, codes):
                break
        return self._with_bias(quadratic, grid, codes)

    def _with_bias(self, quadratic: Quadratic, grid: Grid, codes: Tensor) -> _Candidate:
        if not self.free_bias:
            return _Candidate(codes, grid, self.nearest.bias)
        return _Candidate(codes, grid, self.nearest.bias + quadratic.shift(grid.dequantize(codes)))

    def _retarget(self, limits: Limits, current: _Candidate, *others: _Candidate) -> tuple[Moments, list[float]]:
        """The moments with targets for the activation function at `current`, and the objective of each candidate."""
        low, high = limits
        groups, rows, cols = self._weight.shape
        moments = Moments.zeros((groups, rows, cols), self._weight.device)
        totals = [0.0] * (1 + len(others))
        for columns, y in self._statistics.again():
            wanted = y.clamp(low, high)
            for index, candidate in enumerate((current, *others)):
                z = candidate.outputs(columns)
                if index == 0:
                    t = torch.where(y <= low, z.clamp(max=low), torch.where(y >= high, z.clamp(min=high), y))
                    moments.add_targets(columns, t)
                totals[index] += float(z.clamp_(low, high).sub_(wanted).square_().sum())
        fit = self._statistics.fit
        return dataclasses.replace(moments, count=fit.count, lower=fit.lower, inputs=fit.inputs), totals
