"""Weight MSE: the grid that loses least when every weight is rounded to its nearest code.

    min over s (and z)   ‖W − W̄(s, z)‖²,     W̄ = nearest rounding on the grid (s, z)         (Section 5)

The error is a piecewise quadratic function of s with as many pieces as there are code changes, so a local search alone
would stop in the first dip. The search here is therefore
1. coarse: shrink the min-max interval by each of `candidates` factors evenly spaced in (0, 1], and keep the best;
   asymmetric grids then shrink the lower and the upper end on their own, in turn;
2. fine (symmetric grids): alternate the two half-problems, nearest codes for a fixed scale and the least-squares scale
   for fixed codes, s = ⟨W, q⟩ / ⟨q, q⟩. Neither half ever raises the error, and the best grid seen is kept.

All scales of a layer are searched at once; the cost is `candidates + refinements` passes over the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.grid import Codebook, Granularity, Grid, blocked
from roundwise.problem import RangeEstimator
from roundwise.ranges.affine import TINY, affine_grid
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True)
class WeightMSE(RangeEstimator[Nothing]):
    """Minimise the squared error of nearest rounding over the scale (and the zero point).

    Args:
        candidates: how many shrink factors the coarse search tries; the authors' laboratory uses 80.
        refinements: how many alternating least-squares steps follow on symmetric grids.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Section 5 (experimental setup).
    """

    candidates: int = 100
    refinements: int = 10
    needs: ClassVar[type] = Nothing

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.refinements < 0:
            raise RecipeError(
                f"WeightMSE(candidates={self.candidates}, refinements={self.refinements}): the search needs at least "
                "one candidate and no negative number of refinements."
            )

    def estimate(
        self,
        weight: Float[Tensor, "groups rows cols"],
        codebook: Codebook,
        granularity: Granularity,
        statistics: Nothing,
        layer: str,
    ) -> Grid:
        # From here on a "row" is whatever shares a scale: [scales, 1, members], with one scale per row.
        view = blocked(weight.float(), granularity, layer)
        shape = view.shape[:-1]
        rows = view.reshape(-1, 1, view.shape[-1])
        low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        shrink = torch.arange(self.candidates, 0, -1, device=weight.device) / self.candidates

        best = _Best(rows, affine_grid(low, high, codebook))
        for factor in shrink:
            best.offer(affine_grid(low * factor, high * factor, codebook), low * factor, high * factor)
        if codebook.symmetric:
            for _ in range(self.refinements):
                codes = best.grid.quantize(rows).float()
                energy = codes.square().sum(-1, keepdim=True)
                scale = (rows * codes).sum(-1, keepdim=True) / energy.clamp(min=1)
                best.offer(Grid(torch.where(scale > TINY, scale, best.grid.scale), best.grid.zero_point, codebook))
        else:
            for _ in range(2):
                kept = best.high
                for factor in shrink:
                    best.offer(affine_grid(low * factor, kept, codebook), low * factor, kept)
                kept = best.low
                for factor in shrink:
                    best.offer(affine_grid(kept, high * factor, codebook), kept, high * factor)
        return Grid(best.grid.scale.reshape(shape), best.grid.zero_point.reshape(shape), codebook)


class _Best:
    """The best grid seen so far for each row, with the interval it came from."""

    def __init__(self, rows: Tensor, grid: Grid) -> None:
        self.rows, self.grid = rows, grid
        self.low, self.high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
        self.error = self._measure(grid)

    def _measure(self, grid: Grid) -> Tensor:
        return (self.rows - grid.fake_quantize(self.rows)).square().sum(-1, keepdim=True)

    def offer(self, grid: Grid, low: Tensor | None = None, high: Tensor | None = None) -> None:
        error = self._measure(grid)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        scale = torch.where(better, grid.scale, self.grid.scale)
        zero_point = torch.where(better, grid.zero_point, self.grid.zero_point)
        self.grid = Grid(scale, zero_point, grid.codebook)
        if low is not None and high is not None:
            self.low, self.high = torch.where(better, low, self.low), torch.where(better, high, self.high)
