"""What stands around a search for codes: the bias, the scale and the activation function take their turns with it.

    codes ← search                                       for H and C of the samples
    repeat:  scale ← best for the codes                  (closed form)         codes ← descend
             targets ← for the activation function       (majorisation)        codes ← descend

*The activation function on the way.* Where f_a = clamp(·, l, u), ReLU and ReLU6 among them, follows the layer, the
objective is no longer quadratic, but its gradient needs no more than some positions: with z = ŵ x̂ + b, half of it is
E (f_a(z) − f_a(y)) [l < z < u] x̂ᵀ. A search that goes downhill can ask for that (`Slope`), each time of other positions
(Eq. 25 with minibatches, as in the paper). A free bias moves along, against the mean of (f_a(z) − f_a(y)) [l < z < u],
while inputs are taken less their mean, so that weights and bias do not pull at the same.

*At the end, by majorisation.* With ẑ the current output let

    t = y             where l < y < u
        min(ẑ, l)     where y ≤ l
        max(ẑ, u)     where y ≥ u

Then (f_a(y) − f_a(z))² ≤ (t − z)² for every z, with equality at z = ẑ wherever ẑ is inside its limits or y is not. So
lowering the quadratic on the right, for which all positions count, lowers the objective with its activation function.
Where y is inside its limits and ẑ is not, the bound is not tight and progress is not certain; therefore the objective
itself is measured at every turn, and every row keeps the best that it had; all together where they share a scale that
moved. Other activation functions are left out of the objective.

*Damping.* A few hundred samples do not show all directions that inputs can take, and codes that fit what was seen too
closely err on what was not. Adding to the diagonal of H is what the objective would be if inputs had some noise of
their own: it charges for every departure from the float weights. How much is a question of how many samples there are
for how many columns, which `Quadratic.charge` answers.

*Never worse than nearest.* Nearest rounding is among the candidates, so on the positions that a rounding was chosen by,
it is not worse. (Of all positions, where only some were looked at, that need not hold to the last percent: a free bias
takes up the mean error of those.) On the samples that were held out they are compared again, nearest rounding both with
the bias as it was and with the bias that takes up its mean error (in the rows where that does no harm after the
activation function); if one of these is better there, the layer keeps it and the report says so.

*With all samples.* After that comparison nothing is left for the held-out samples to judge. Where positions are few
for each column, the codes that stood it take one more round of turns in which these samples count too. It starts from
these codes and raises the objective over all samples for no row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding
from roundwise.numerics.grid import Grid
from roundwise.numerics.moments import Moments, Pairs
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices, descend
from roundwise.statistics import Gram

aten = torch.ops.aten

Slope = Callable[[Tensor], Tensor]
"""From weights `[groups, rows, cols]`, half the gradient there of the objective with activation function and damping.

It is estimated from other positions at each call, and each call moves a free bias on: so it is for going downhill.
"""

Search = Callable[[Quadratic, Grid, Choices, Slope | None], Tensor]
"""Codes `[groups, rows, cols]` for an objective, each within its choices; `Slope` where a clamp follows the layer."""

Improve = Callable[[Quadratic, Grid, Tensor, Choices], Tensor]
"""From codes, the third argument, to others within their choices that are no worse for the quadratic, row by row."""

MINIBATCH = 256
"""Positions for one slope, or as many as there are columns where that is more."""

ENOUGH = 16
"""Positions for each column without which slopes from a few of them would do more harm than good.

A matrix so wide that `Gram` takes only `POSITIONS_PER_COLUMN` of them, an eighth of them held out, does without."""

PLENTY = 100
"""Positions for each column with which an eighth more of them changes next to nothing."""

PROGRESS = 0.005
"""A turn that gains less than this share of the objective is the last."""

LEVEL_RATE = 0.2
"""The share of the mean error that a free bias takes up at each slope."""

Limits = tuple[float, float]

WORK = 12.0
"""About how many forward passes of the layer the moments and a solution take, for the plan's estimate of time.

With 16, ResNet-20 took 26 s where the plan said 32, and MobileNetV1 55 s where it said 73, on a core of a CPU."""


@final
@dataclass(frozen=True)
class Freedom:
    """What may change beside the rounding.

    Attributes:
        any_code: each weight may get any code of the grid, not just the two next to it.
        free_bias: the layer's bias takes up the mean error.
        fit_scale: the scales follow the codes.
        turns: how often scale and targets are set anew; with 0 the activation function plays no part in the search.
        damping: how strongly weights are held to the float ones (`Quadratic.charge`).
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

    def outputs(self, pairs: Pairs) -> Float[Tensor, "groups pairs rows"]:
        """What the layer gives for unfolded inputs."""
        return pairs.outputs(self.grid.dequantize(self.codes), self.bias)


def solve(
    problem: Problem[Gram],
    search: Search,
    freedom: Freedom,
    *,
    improve: Improve = descend,
    twice: bool = False,
    remark: str = "",
) -> Rounding:
    """Choose codes by `search`, and whatever else is free.

    Args:
        problem: the layer.
        search: finds codes to begin with.
        freedom: what else may change.
        improve: betters them at every turn, while targets follow the activation function.
        twice: where the search follows slopes, search again without, and let every row keep the better end.
        remark: what reports say of the layer, unless it keeps nearest rounding.
    """
    gram, nearest, note = problem.statistics, _nearest(problem), remark
    turns = _Turns(problem, nearest, freedom, improve, gram.fit, gram.again)
    chosen = turns.best(search, twice=twice)
    if gram.held_out.count:
        others = (nearest, turns.nearest_with_bias()) if turns.free_bias else (nearest,)
        error, *errors = turns.held_out_losses(chosen, *others)
        limit = error - 1e-6 * error - 1e-9 * float(gram.held_out.energy.sum())  # above it is noise
        least, other = min(zip(errors, others, strict=True), key=itemgetter(0))
        if other is not nearest and least < limit:
            mended = turns.no_worse_than_nearest(other)
            (loss,) = turns.held_out_losses(mended)
            least, other = min((errors[0], nearest), (loss, mended), key=itemgetter(0))
        if least < limit:
            chosen = other
            biased = "" if chosen is nearest else ", with a bias that takes up its mean error"
            share = f"{least / error:.4g} of the other codes'"
            note = f"keeps nearest rounding{biased}: its error on held-out samples is {share}"
        elif freedom.turns and gram.fit.count < PLENTY * problem.weight.shape[2]:
            del turns  # it holds matrices as large as the moments
            moments = gram.fit.merge(gram.held_out)
            turns = _Turns(problem, nearest, freedom, improve, moments, gram.all_again)
            del moments
            chosen = turns.improved(chosen)
    else:
        note = "; ".join(filter(None, (remark, "of a single sample nothing can be held out to check it on")))
    grid = None if chosen.grid is nearest.grid else chosen.grid
    shift = None if chosen.bias is nearest.bias else chosen.bias - nearest.bias
    return Rounding(chosen.codes, grid, shift, note)


def _nearest(problem: Problem[Gram]) -> _Candidate:
    """Nearest rounding, with the bias as it is."""
    bias = torch.zeros(problem.weight.shape[:2], dtype=torch.float32, device=problem.weight.device)
    if problem.statistics.layer.bias is not None:
        bias = problem.statistics.layer.bias.float().reshape(bias.shape)
    return _Candidate(problem.grid.quantize(problem.weight), problem.grid, bias)


@final
class _Follower:
    """The `Slope` of one problem, and the bias that has moved along with it.

    Where the bias is free, it keeps the level b + ŵ μ instead: with inputs less their mean μ, outputs are that and ŵ x̂.
    """

    def __init__(
        self, plain: Quadratic, charge: Tensor, bias: Tensor, limits: Limits, minibatches: Iterator[Pairs]
    ) -> None:
        self.used = False
        self._limits, self._minibatches = limits, minibatches
        self._charge = charge[:, None, None]
        self._charged = plain.weight * -self._charge
        self._mean = plain.input_mean
        self._level = bias
        if plain.input_mean is not None and plain.mean_error is not None:
            self._level = bias + plain.mean_error + self._move(plain.weight)

    def __call__(self, matrix: Tensor) -> Tensor:
        self.used = True
        low, high = self._limits
        pairs = next(self._minibatches)
        if self._mean is not None:
            pairs = pairs._replace(columns=pairs.columns - self._mean.unsqueeze(1))
        columns, y = pairs
        z = pairs.outputs(matrix, self._level)
        # Flat outside the limits: there the error has no influence.
        error = aten.hardtanh_backward(z - y.clamp(low, high), z, low, high)
        if self._mean is not None:
            self._level = self._level - LEVEL_RATE * error.mean(1)
        slope = torch.addcmul(self._charged, matrix, self._charge)
        return slope.baddbmm_(error.mT, columns, alpha=1 / columns.shape[1])

    def bias(self, matrix: Tensor) -> Tensor:
        """The layer's bias with these weights."""
        return self._level if self._mean is None else self._level - self._move(matrix)

    def _move(self, matrix: Tensor) -> Tensor:
        """ŵ μ."""
        assert self._mean is not None
        return (matrix @ self._mean.unsqueeze(-1)).squeeze(-1)


@final
class _Turns:
    """One problem on its way to a solution, for the moments of some samples and their positions once more."""

    def __init__(
        self,
        problem: Problem[Gram],
        nearest: _Candidate,
        freedom: Freedom,
        improve: Improve,
        moments: Moments,
        again: Callable[[], Iterator[Pairs]],
    ) -> None:
        self._weight, self._grid, self._statistics = problem.weight, problem.grid, problem.statistics
        self.nearest, self._freedom, self._improve, self._again = nearest, freedom, improve, again
        self._limits = None if problem.nonlinearity is None else problem.nonlinearity.limits
        self.free_bias = freedom.free_bias and problem.bias_is_free
        self._plain = Quadratic.of(moments, self._weight, nearest.bias, free_bias=self.free_bias)

    def best(self, search: Search, *, twice: bool) -> _Candidate:
        """The best candidate that a search leads to."""
        charge = self._plain.charge(self._freedom.damping)
        quadratic, follower = self._plain.damped(charge), self._follower(charge)
        start = self._start(quadratic, search, follower)
        if self._limits is None or not self._freedom.turns:
            loss, loss_nearest = (self._plain.loss(it.grid.dequantize(it.codes)) for it in (start, self.nearest))
            return self.nearest_with_bias() if loss.sum() > loss_nearest.sum() else start
        best, least = self._take_turns(quadratic, start)
        if twice and follower is not None and follower.used:
            best, _ = _keep(best, least, *self._take_turns(quadratic, self._start(quadratic, search, None)))
        return best

    def improved(self, candidate: _Candidate) -> _Candidate:
        """One that is no worse for these samples."""
        quadratic = self._plain.damped(self._plain.charge(self._freedom.damping))
        if self._limits is not None:
            return self._take_turns(quadratic, candidate)[0]
        before = self._with_bias(self._plain, candidate.grid, candidate.codes)
        codes = self._improve(quadratic, before.grid, before.codes, self._choices(before.grid)).to(torch.int32)
        after = self._with_scale(quadratic, before.grid, codes, 1)
        loss_before, loss_after = (self._plain.loss(one.grid.dequantize(one.codes)) for one in (before, after))
        return _keep(before, loss_before, after, loss_after)[0]

    def _start(self, quadratic: Quadratic, search: Search, follower: _Follower | None) -> _Candidate:
        """What the search finds, on slopes or on the quadratic."""
        codes = search(quadratic, self._grid, self._choices(self._grid), follower).to(torch.int32)
        if follower is not None and follower.used:
            return _Candidate(codes, self._grid, follower.bias(self._grid.dequantize(codes)))
        # Row by row no worse than nearest rounding; and after the scale has moved, as a whole.
        loss, loss_nearest = (self._plain.loss(self._grid.dequantize(it)) for it in (codes, self.nearest.codes))
        codes = torch.where((loss_nearest < loss).unsqueeze(-1), self.nearest.codes, codes)
        return self._with_scale(quadratic, self._grid, codes, self._freedom.turns)

    def _take_turns(self, quadratic: Quadratic, current: _Candidate) -> tuple[_Candidate, Tensor]:
        """The best on the way from a start, nearest rounding among it, and its objective row by row."""
        followed, (loss, loss_nearest) = self._look(quadratic, current, self.nearest)
        best, least = _keep(current, loss, self.nearest, loss_nearest)
        for _ in range(self._freedom.turns):
            before = least.sum()
            codes = self._improve(followed, current.grid, current.codes, self._choices(current.grid))
            current = self._with_scale(followed, current.grid, codes.to(torch.int32), 1)
            followed, (loss,) = self._look(quadratic, current)
            best, least = _keep(best, least, current, loss)
            if least.sum() > before * (1 - PROGRESS):
                break
        return best, least

    def nearest_with_bias(self) -> _Candidate:
        """Nearest rounding, the bias taking up its mean error."""
        return self._with_bias(self._plain, self._grid, self.nearest.codes)

    def no_worse_than_nearest(self, candidate: _Candidate) -> _Candidate:
        """One whose bias was fitted before the activation function: nearest rounding in the rows that it harms."""
        if self._limits is None or not self._freedom.turns:
            return candidate
        _, losses = self._look(self._plain, candidate, self.nearest)
        return _keep(candidate, losses[0], self.nearest, losses[1])[0]

    def held_out_losses(self, *candidates: _Candidate) -> list[float]:
        """The objective, with its activation function, on the samples that were held out."""
        totals = [0.0] * len(candidates)
        low, high = self._limits or (-torch.inf, torch.inf)
        for pairs in self._statistics.again(held_out=True):
            wanted = pairs.targets.clamp(low, high)
            for index, candidate in enumerate(candidates):
                totals[index] += float(candidate.outputs(pairs).clamp_(low, high).sub_(wanted).square_().sum())
        return totals

    def _follower(self, charge: Tensor) -> _Follower | None:
        """Gives slopes, where a clamp follows the layer and there are enough positions."""
        enough = self._statistics.fit.count >= ENOUGH * self._weight.shape[2]
        if self._limits is None or not self._freedom.turns or not enough:
            return None
        minibatches = self._statistics.minibatches(max(MINIBATCH, self._weight.shape[2]))
        return _Follower(self._plain, charge, self.nearest.bias, self._limits, minibatches)

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

    def _look(self, quadratic: Quadratic, *candidates: _Candidate) -> tuple[Quadratic, list[Tensor]]:
        """The quadratic with targets for the activation function at the first, and the objective of each, by row."""
        assert self._limits is not None
        low, high = self._limits
        cross, mean = torch.zeros_like(self._weight), torch.zeros_like(self.nearest.bias)
        losses = [torch.zeros_like(mean) for _ in candidates]
        for pairs in self._again():
            outputs = [candidate.outputs(pairs) for candidate in candidates]
            change = self._change(pairs.targets, outputs[0])
            cross.baddbmm_(change.mT, pairs.columns)
            mean += change.sum(1)
            wanted = pairs.targets.clamp(low, high)
            for loss, z in zip(losses, outputs, strict=True):
                loss += z.clamp_(low, high).sub_(wanted).square_().sum(1)
        count = self._plain.count
        return quadratic.with_targets(cross / count, mean / count), losses

    def _change(self, y: Tensor, z: Tensor) -> Tensor:
        """t − y, which is 0 where y is inside its limits."""
        assert self._limits is not None
        low, high = self._limits
        # What a backward pass lets through is where y is inside, to be taken away: `torch.where` is ten times slower.
        change = z.clamp(max=low).sub_(y) if low > -torch.inf else torch.zeros_like(y)
        change.sub_(aten.threshold_backward(change, y, low))
        if high < torch.inf:
            above = z.clamp(min=high).sub_(y)
            change.add_(above.sub_(aten.hardtanh_backward(above, y, -torch.inf, high)))
        return change


def _keep(one: _Candidate, loss: Tensor, other: _Candidate, loss_of_other: Tensor) -> tuple[_Candidate, Tensor]:
    """Of every row the better one, with its objective; of all rows together where several share a scale that moved."""
    grid, better = one.grid, loss_of_other < loss
    if other.grid is not grid:
        if grid.scale.shape[:2] != better.shape:
            return (other, loss_of_other) if loss_of_other.sum() < loss.sum() else (one, loss)
        grid = dataclasses.replace(grid, scale=torch.where(better.unsqueeze(-1), other.grid.scale, grid.scale))
    codes = torch.where(better.unsqueeze(-1), other.codes, one.codes)
    bias = one.bias if other.bias is one.bias else torch.where(better, other.bias, one.bias)
    return _Candidate(codes, grid, bias), torch.minimum(loss, loss_of_other)
