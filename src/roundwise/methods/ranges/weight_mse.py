"""Weight MSE: the grid with the smallest squared error when every weight is rounded to its nearest code.

    min over s (and z)   ‖W − W̄(s, z)‖²,     W̄ = nearest rounding on the grid (s, z)         (Section 5)

As a function of s, the error is piecewise quadratic, with a new piece wherever a code changes. It has many local
minima, so a local search alone would stop in the first one. The search has three steps:

1. Coarse. Multiply the min-max interval by each of `candidates` evenly spaced factors in (0, 1], and by further factors
   with the same spacing up to 1.2; keep the best. For an asymmetric grid, then move the lower and the upper end alone,
   in turn, twice.
2. Fine. Alternate between the nearest codes for a fixed scale, and the least-squares scale for fixed codes,
   s = ⟨W, q − z⟩ / ⟨q − z, q − z⟩. Neither raises the error.
3. Compare with min-max, and keep the better of the two; so the result is never worse than min-max.

An interval wider than min-max can be better if few weights share a scale, because the weights may then lie closer to
codes: for the 9 weights of a depthwise channel at 4 bits it makes the error a tenth smaller. With hundreds of weights
it is never better.

With `Nearest` rounding and a scale per output channel this is OMSE without its extensions (Choukroun et al. 2019,
arXiv:1902.06822), which finds the same minimum by a line search. Its extension "+opt" is `NearestScaled`.

Each scale has its own search over the weights that share it; all searches run at the same time. Each candidate (there
are 120, or 600 for an asymmetric grid) costs about 6 passes over the weights, in pieces that fit in the processor's
cache: 2 to 3 ns per weight and candidate on one core.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import RangeEstimator
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Codebook, Granularity, Grid, affine_grid, blocked, positive_scale
from roundwise.statistics import Nothing

WIDEST_FACTOR = 1.2
"""The widest interval that the search tries, as a multiple of min-max. A larger factor adds candidates, which only help
if few weights share a scale."""

PIECE = 1 << 16
"""Weights that are processed at once. They take 256 KiB and their codes as much, which fits in a second-level cache;
larger pieces are slower once they do not fit."""


@final
@dataclass(frozen=True)
class WeightMSE(RangeEstimator[Nothing]):
    """Minimise the squared error of nearest rounding over the scale (and the zero point).

    Args:
        candidates: number of factors up to 1 in the coarse search; more find a better scale and take longer. The
            authors' toolkit, AIMET, uses 80.
        refinements: largest number of alternating least-squares steps.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Section 5 (experimental setup).
    """

    candidates: int = 100
    refinements: int = 10
    needs: ClassVar[type] = Nothing

    def __post_init__(self) -> None:
        check_types(self)
        rule = "the search needs at least one candidate and no negative number of refinements"
        check_rules(self, {rule: self.candidates >= 1 and self.refinements >= 0})

    def estimate(
        self,
        weight: Float[Tensor, "groups rows cols"],
        codebook: Codebook,
        granularity: Granularity,
        statistics: Nothing,
        layer: str,
    ) -> Grid:
        # From here on a "row" holds the weights that share one scale: [rows, members].
        view = blocked(weight.float(), granularity, layer)
        rows = view.reshape(-1, view.shape[-1])
        grids = [self._search(part, codebook) for part in rows.split(max(1, PIECE // rows.shape[1]))]
        scale = torch.cat([grid.scale for grid in grids], dim=1).reshape(view.shape[:-1])
        zero_point = torch.cat([grid.zero_point for grid in grids], dim=1).reshape(view.shape[:-1])
        return Grid(scale, zero_point, codebook)

    def _search(self, rows: Float[Tensor, "rows members"], codebook: Codebook) -> Grid:
        """The grid of every row: scales `[1, rows, 1]`."""
        # Scale every row by a power of two so that its largest weight lies in [1/2, 1): this is exact, and squares can
        # neither overflow nor underflow. (`positive_scale` treats rows below 2^-100 as zero.)
        exponent = torch.frexp(rows.abs().amax(-1, keepdim=True)).exponent.clamp(min=-100)
        rows = torch.ldexp(rows, -exponent)
        count = math.floor(WIDEST_FACTOR * self.candidates)
        factors = torch.arange(count, 0, -1, device=rows.device).reshape(-1, 1, 1) / self.candidates
        lowest, highest = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)

        low, high = _best(rows, lowest * factors, highest * factors, codebook)
        if not codebook.symmetric:
            for _ in range(2):
                low, high = _best(rows, lowest * factors, high.expand(count, -1, -1), codebook)
                low, high = _best(rows, low.expand(count, -1, -1), highest * factors, codebook)
        grid = self._refine(rows, affine_grid(low, high, codebook))
        grid = _no_worse(rows, grid, affine_grid(lowest[None], highest[None], codebook))
        return Grid(positive_scale(torch.ldexp(grid.scale, exponent)), grid.zero_point, codebook)

    def _refine(self, rows: Tensor, grid: Grid) -> Grid:
        error = _squared_errors(rows, grid)
        for _ in range(self.refinements):
            scale = _least_squares_scale(rows, grid)
            refined = Grid(torch.where(scale > 0, scale, grid.scale), grid.zero_point, grid.codebook)
            refined_error = _squared_errors(rows, refined)
            better = refined_error < error
            if not better.any():
                break
            error = torch.where(better, refined_error, error)
            grid = Grid(torch.where(better, refined.scale, grid.scale), grid.zero_point, grid.codebook)
        return grid


def _best(rows: Tensor, low: Tensor, high: Tensor, codebook: Codebook) -> tuple[Tensor, Tensor]:
    """For each row, the interval with the smallest error among `[candidates, rows, 1]`; of equal ones the first."""
    choice = _squared_errors(rows, affine_grid(low, high, codebook)).argmin(0, keepdim=True)
    return low.gather(0, choice), high.gather(0, choice)


def _no_worse(rows: Tensor, grid: Grid, simple: Grid) -> Grid:
    """For each row, the grid or the simple grid, whichever has the smaller error in the network's own arithmetic.

    The search computes s (q − z) exactly. The network rounds it to float32, which changes the error by a thousandth at
    16 bits.
    """
    errors = [(one.fake_quantize(rows[None]) - rows).double().square().sum(-1, keepdim=True) for one in (grid, simple)]
    better = errors[1] < errors[0]
    scale = torch.where(better, simple.scale, grid.scale)
    return Grid(scale, torch.where(better, simple.zero_point, grid.zero_point), grid.codebook)


def _squared_errors(rows: Tensor, grids: Grid) -> Tensor:
    """The squared error of nearest rounding for every candidate grid of every row, `[candidates, rows, 1]`."""
    errors = torch.zeros_like(grids.scale)
    for candidate, piece, codes in _nearest_codes(rows, grids):
        residual = torch.addcmul(piece, codes, grids.scale[candidate], value=-1, out=codes)
        errors[candidate] += torch.linalg.vecdot(residual, residual).unsqueeze(-1)
    return errors


def _least_squares_scale(rows: Tensor, grids: Grid) -> Tensor:
    """The least-squares scale of every row for its nearest codes on a grid; 0 where all codes stand for 0.0."""
    product, energy = torch.zeros_like(grids.scale), torch.zeros_like(grids.scale)
    for candidate, piece, codes in _nearest_codes(rows, grids):
        product[candidate] += torch.linalg.vecdot(piece, codes).unsqueeze(-1)
        energy[candidate] += torch.linalg.vecdot(codes, codes).unsqueeze(-1)
    return product / energy.clamp(min=1)


def _nearest_codes(rows: Tensor, grids: Grid) -> Iterator[tuple[int, Tensor, Tensor]]:
    """q − z for the nearest codes q, as floats, for each piece and grid: `Grid.quantize` without temporary tensors."""
    codebook, factors, zero_points = grids.codebook, 1 / grids.scale, grids.zero_point.float()
    for piece in rows.split(PIECE, dim=1):
        codes = torch.empty_like(piece)
        for candidate in range(len(factors)):
            torch.mul(piece, factors[candidate], out=codes)
            if codebook.symmetric:
                codes.round_().clamp_(codebook.qmin, codebook.qmax)
            else:
                zero_point = zero_points[candidate]
                codes.add_(zero_point).round_().clamp_(codebook.qmin, codebook.qmax).sub_(zero_point)
            yield candidate, piece, codes
