"""The four objectives of one layer, and candidates for its solution.

With inputs x̂ of the network so far, targets y of the float network, float weights w and bias b:

    Q   plain       E (y − ŵ x̂ − b)²                          a quadratic, from second moments
    S   shrunk      Q + strength · ‖ŵ − w‖²                   a quadratic; lowering Q itself overfits few samples
    L   clamped     E (f(y) − f(ŵ x̂ + b))²                    for a clamp f behind the layer; needs the positions
    M   majorised   E (t − ŵ x̂ − b)² + strength · ‖ŵ − w‖²    a quadratic whose targets t follow the clamp

`numerics/quadratic.py` explains Q and S, `numerics/clamped.py` L and M. Searches lower S and M, and on minibatches
L + strength · ‖ŵ − w‖²; solvers without `shrinkage` lower Q. Candidates are compared by Q, or by L where the clamp is
part of the objective. Each row has an objective of its own; rows depend on each other only through a scale they share.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding
from roundwise.numerics.clamped import Limits, majorising_change
from roundwise.numerics.grid import Grid
from roundwise.numerics.moments import Pairs
from roundwise.numerics.quadratic import Quadratic
from roundwise.statistics import Gram


class Candidate(NamedTuple):
    """A possible solution: codes on a grid, with the layer's bias."""

    codes: Int[Tensor, "groups rows cols"]
    grid: Grid
    bias: Float[Tensor, "groups rows"]

    def matrix(self) -> Float[Tensor, "groups rows cols"]:
        """The weights ŵ that the codes stand for."""
        return self.grid.dequantize(self.codes)

    def outputs(self, pairs: Pairs) -> Float[Tensor, "groups pairs rows"]:
        """The layer's outputs for unfolded inputs."""
        return pairs.outputs(self.matrix(), self.bias)


class Scored(NamedTuple):
    """A candidate with the objective of each of its rows: Q or L."""

    candidate: Candidate
    losses: Float[Tensor, "groups rows"]


@final
@dataclass(frozen=True, eq=False)
class Objectives:
    """The objectives of one layer over some of its samples.

    Attributes:
        problem: the layer.
        split: the samples: those that a rounding is chosen by, or all.
        free_bias: whether the bias takes up the mean error.
        plain: Q.
        shrunk: S.
        strength: of the pull to the float weights in S and M; for each group.
        limits: those of the clamp that follows the layer; None where no clamp follows, or where it is left out.
        nearest: nearest rounding, with scale and bias as they are.
    """

    problem: Problem[Gram]
    split: Literal["fit", "all"]
    free_bias: bool
    plain: Quadratic
    shrunk: Quadratic
    strength: Float[Tensor, "groups"]
    limits: Limits | None
    nearest: Candidate

    @classmethod
    def of(
        cls,
        problem: Problem[Gram],
        split: Literal["fit", "all"] = "fit",
        *,
        free_bias: bool,
        shrinkage: float = 0.0,
        clamped: bool = False,
    ) -> Objectives:
        """The objectives of a problem.

        Args:
            problem: the layer.
            split: which samples.
            free_bias: let the bias take up the mean error, if the problem lets it.
            shrinkage: the strength of the pull to the float weights, in the unit of `Quadratic.shrinkage_strength`.
            clamped: whether a clamp that follows the layer is part of the objective; False lowers Q alone.
        """
        gram, nonlinearity = problem.statistics, problem.nonlinearity
        free_bias = free_bias and problem.bias_is_free
        moments = gram.fit if split == "fit" else gram.fit.merge(gram.held_out)
        plain = Quadratic.of(moments, problem.weight, problem.bias, free_bias=free_bias)
        del moments  # as large as the quadratic
        strength = plain.shrinkage_strength(shrinkage)
        shrunk = plain.shrunk(strength) if shrinkage else plain
        limits = nonlinearity.limits if clamped and nonlinearity is not None else None
        nearest = Candidate(problem.grid.quantize(problem.weight), problem.grid, problem.bias)
        return cls(problem, split, free_bias, plain, shrunk, strength, limits, nearest)

    def with_best_bias(self, quadratic: Quadratic, grid: Grid, codes: Int[Tensor, "groups rows cols"]) -> Candidate:
        """Codes, with the bias that is best for them by the quadratic, where the bias is free."""
        if not self.free_bias:
            return Candidate(codes, grid, self.problem.bias)
        return Candidate(codes, grid, self.problem.bias + quadratic.shift(grid.dequantize(codes)))

    def nearest_with_best_bias(self) -> Candidate:
        """Nearest rounding, where the bias takes up its mean error."""
        return self.with_best_bias(self.plain, self.problem.grid, self.nearest.codes)

    def no_row_worse_than_nearest(self, codes: Int[Tensor, "groups rows cols"]) -> Int[Tensor, "groups rows cols"]:
        """Of every row the given codes, or the nearest ones where these have a smaller Q."""
        grid = self.problem.grid
        losses, losses_nearest = (self.plain.loss(grid.dequantize(it)) for it in (codes, self.nearest.codes))
        return torch.where((losses_nearest < losses).unsqueeze(-1), self.nearest.codes, codes)

    def no_worse_than_nearest(self, codes: Int[Tensor, "groups rows cols"]) -> Candidate:
        """The candidate of a solver that lowers Q by codes on the problem's grid, and by the bias where it is free."""
        return self.with_best_bias(self.plain, self.problem.grid, self.no_row_worse_than_nearest(codes))

    def majorise(self, current: Candidate, *others: Candidate) -> tuple[Quadratic, list[Scored]]:
        """M, which majorises L at the current candidate; and all candidates scored by L, summed over the positions.

        One pass over the positions gives both.
        """
        assert self.limits is not None
        low, high = self.limits
        cross, mean = torch.zeros_like(self.problem.weight), torch.zeros_like(self.problem.bias)
        candidates = current, *others
        losses = [torch.zeros_like(mean) for _ in candidates]
        for pairs in self.problem.statistics.positions(self.split):
            outputs = [candidate.outputs(pairs) for candidate in candidates]  # ŷ: [groups, positions, rows]
            change = majorising_change(pairs.targets, outputs[0], self.limits)  # t − y
            cross.baddbmm_(change.mT, pairs.columns)
            mean += change.sum(1)
            wanted = pairs.targets.clamp(low, high)
            for loss, output in zip(losses, outputs, strict=True):
                loss += output.clamp_(low, high).sub_(wanted).square_().sum(1)
        count = self.plain.count
        majorised = self.shrunk.with_targets(cross / count, mean / count)
        return majorised, [Scored(one, loss) for one, loss in zip(candidates, losses, strict=True)]

    def plain_losses(self, candidate: Candidate) -> Float[Tensor, "groups rows"]:
        """Q of every row; where the bias is free, at the best bias."""
        return self.plain.loss(candidate.matrix())


def best_rows(one: Scored, other: Scored) -> Scored:
    """Of every row the better one; of the whole layer the better one where rows share a scale that has changed."""
    (first, loss), (second, loss_of_second) = one, other
    grid, better = first.grid, loss_of_second < loss
    if second.grid is not grid:
        if grid.scale.shape[:2] != better.shape:
            return other if loss_of_second.sum() < loss.sum() else one
        grid = dataclasses.replace(grid, scale=torch.where(better.unsqueeze(-1), second.grid.scale, grid.scale))
    codes = torch.where(better.unsqueeze(-1), second.codes, first.codes)
    bias = first.bias if second.bias is first.bias else torch.where(better, second.bias, first.bias)
    return Scored(Candidate(codes, grid, bias), torch.minimum(loss, loss_of_second))


def as_rounding(problem: Problem[Gram], candidate: Candidate, note: str) -> Rounding:
    """The answer of a solver: only what differs from the problem's own grid and bias is in it."""
    grid = None if candidate.grid is problem.grid else candidate.grid
    shift = None if candidate.bias is problem.bias else candidate.bias - problem.bias
    return Rounding(candidate.codes, grid, shift, note)
