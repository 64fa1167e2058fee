"""What stands around a search for codes: the bias, the scale and the activation function take their turns with it.

    codes ← search                                       for H and C of the samples
    repeat:  scale ← best for the codes                  (closed form)         codes ← descend
             targets ← for the activation function       (majorisation)        codes ← descend

*Activation by majorisation.* For f_a = clamp(·, l, u), ReLU and ReLU6 among them, and ẑ the current output, let

    t = y             where l < y < u
        min(ẑ, l)     where y ≤ l
        max(ẑ, u)     where y ≥ u

Then (f_a(y) − f_a(z))² ≤ (t − z)² for every z, and where y is inside its limits only if ẑ is too, the two are equal at
z = ẑ: so lowering the quadratic on the right lowers the objective with its activation function (Eq. 25). Where y is
inside and ẑ is not, the bound is not tight, so progress is not certain; the objective is therefore measured at
every turn, and each row keeps the best it had. Other activation functions are left out of the objective.

*Never worse than nearest.* On the samples it was made from each row is no worse than its nearest rounding, because
that is one of the candidates. On the samples that were held out the whole layer is compared, and keeps nearest
rounding if that is better there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.gramspace.descent import Choices, descend
from roundwise.gramspace.quadratic import Quadratic
from roundwise.grid import Grid
from roundwise.problem import Problem, Rounding
from roundwise.statistics import Gram, Moments, Pairs

Search = Callable[[Quadratic, Grid, Choices], Tensor]
"""Codes `[groups, rows, cols]` for an objective; each within its choices."""


@final
@dataclass(frozen=True)
class Freedom:
    """What may change beside the rounding.

    Args:
        any_code: each weight may get any code of the grid, not just the two next to it.
        free_bias: the layer's bias takes up the mean error.
        fit_scale: the scale follows the codes.
        turns: how often scale and targets are set anew.
    """

    any_code: bool
    free_bias: bool
    fit_scale: bool
    turns: int
    damping: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class _Candidate:
    """Codes on a grid, with a bias `[groups, rows]`."""

    grid: Grid
    codes: Tensor
    bias: Tensor

    @property
    def matrix(self) -> Tensor:
        return self.grid.dequantize(self.codes)


def solve(problem: Problem[Gram], search: Search, freedom: Freedom) -> Rounding:
    """Choose codes by `search`, and whatever else is free."""
    statistics, weight = problem.statistics, problem.weight
    own_bias = statistics.layer.bias
    bias = torch.zeros(weight.shape[:2], device=weight.device)
    if own_bias is not None:
        bias = own_bias.float().reshape(bias.shape)
    free_bias = freedom.free_bias and problem.bias_is_free
    limits = None if problem.activation is None else problem.activation.limits
    nearest = _Candidate(problem.grid, problem.grid.quantize(weight), bias)

    def choices(grid: Grid) -> Choices:
        return Choices.all(grid, weight) if freedom.any_code else Choices.floor_or_ceil(problem.grid, weight)

    def objective(moments: Moments) -> Quadratic:
        quadratic = Quadratic.of(moments, weight, bias, free_bias=free_bias)
        return quadratic.damped(freedom.damping) if freedom.damping else quadratic

    def candidate(quadratic: Quadratic, grid: Grid, codes: Tensor) -> _Candidate:
        return _Candidate(grid, codes, bias + quadratic.shift(grid.dequantize(codes)))

    quadratic = objective(statistics.fit)
    grid = problem.grid
    codes = search(quadratic, grid, choices(grid))
    if freedom.fit_scale:
        grid, codes = _fit_scale(quadratic, grid, codes, choices, freedom.turns)
    best = candidate(quadratic, grid, codes)
    if limits is not None and freedom.turns:
        best = _follow_activation(statistics, best, limits, objective, candidate, choices, freedom)
    if statistics.held_out.count:
        chosen, other = (_loss(statistics.again(held_out=True), it, limits) for it in (best, nearest))
        if chosen.sum() > other.sum():
            return Rounding(nearest.codes, note=f"kept nearest rounding: on held-out samples its error is "
                            f"{float(other.sum() / chosen.sum()):.3f} of the chosen one's")
    return Rounding(
        best.codes,
        grid=best.grid if freedom.fit_scale else None,
        bias_shift=best.bias - bias if free_bias else None,
    )


def _fit_scale(
    quadratic: Quadratic, grid: Grid, codes: Tensor, choices: Callable[[Grid], Choices], turns: int
) -> tuple[Grid, Tensor]:
    """Scale and codes in turn, each the best for the other."""
    for _ in range(turns):
        fitted = quadratic.best_scale(grid, codes)
        new = descend(quadratic, fitted, codes, choices(fitted))
        same = torch.equal(new, codes)
        grid, codes = fitted, new
        if same:
            break
    return grid, codes


def _follow_activation(statistics, start, limits, objective, candidate, choices, freedom) -> _Candidate:
    best, current = start, start
    best_loss = None
    for turn in range(freedom.turns + 1):
        moments, loss = _retarget(statistics, current, limits)
        if best_loss is None or loss.sum() < best_loss.sum():
            best, best_loss = current, loss
        if turn == freedom.turns:
            break
        quadratic = objective(moments)
        grid, codes = current.grid, current.codes
        codes = descend(quadratic, grid, codes, choices(grid))
        if freedom.fit_scale:
            grid, codes = _fit_scale(quadratic, grid, codes, choices, 3)
        current = candidate(quadratic, grid, codes)
    return best


def _retarget(
    statistics: Gram, current: _Candidate, limits: tuple[float, float]
) -> tuple[Moments, Float[Tensor, "groups rows"]]:
    """The moments with targets for the activation function, and the objective with it at the current candidate."""
    low, high = limits
    matrix, bias = current.matrix, current.bias.unsqueeze(1)
    shape = matrix.shape
    moments = Moments.zeros(shape, matrix.device)
    total = torch.zeros_like(current.bias)
    for columns, y in statistics.again():
        z = torch.baddbmm(bias, columns, matrix.mT)
        total += (y.clamp(low, high) - z.clamp(low, high)).square_().sum(1)
        t = torch.where(y <= low, z.clamp(max=low), torch.where(y >= high, z.clamp(min=high), y))
        moments.add_targets(columns, t)
    fit = statistics.fit
    return dataclasses.replace(moments, count=fit.count, second=fit.second, inputs=fit.inputs), total / fit.count


def _loss(pairs: Iterable[Pairs], candidate: _Candidate, limits: tuple[float, float] | None) -> Tensor:
    matrix, bias = candidate.matrix, candidate.bias.unsqueeze(1)
    total = torch.zeros_like(candidate.bias)
    for columns, y in pairs:
        z = torch.baddbmm(bias, columns, matrix.mT)
        if limits is not None:
            y, z = y.clamp(*limits), z.clamp(*limits)
        total += (y - z).square_().sum(1)
    return total
