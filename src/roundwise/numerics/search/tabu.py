"""Tabu search over codes: keep changing the best single code, even uphill, and forbid undoing the change for a while.

With g = d H − c (half the gradient), moving code j by one changes the row's objective by

    s² H_jj ± 2 s g_j

At every step each row makes the move that lowers its objective most, or raises it least, among the moves that are not
tabu. A column that was changed is tabu for a random number of steps, unless the move gives the best objective that the
row has had so far. So the search climbs out of the local minima where coordinate descent stops.

References:
    Glover, Tabu Search, ORSA Journal on Computing 1(3), 1989.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int, Real
from torch import Tensor

from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices


@final
@dataclass(frozen=True)
class Tabu:
    """Change one code of every row at a time, and return the best codes met.

    Args:
        moves: of every row; each changes one code by one.
        tenure: a changed code stays as it is for at least this many moves, and for at most twice as many.
    """

    moves: int = 1000
    tenure: int = 10

    def search(
        self,
        objective: Quadratic,
        grid: Grid,
        start: Real[Tensor, "groups rows cols"],
        choices: Choices,
        generator: torch.Generator,
    ) -> Int[Tensor, "groups rows cols"]:
        """The best codes met on the way from `start`, row by row; so the objective of no row rises.

        Args:
            objective: what is lowered.
            grid: gives scales and zero points.
            start: codes within `choices`.
            choices: the codes that are allowed.
            generator: draws the tenures; on the CPU.
        """
        hessian, codes, cols = objective.hessian, start.float(), start.shape[-1]
        scale = grid.scales(cols).expand(codes.shape)
        difference = (codes - expand_blocks(grid.zero_point, cols)) * scale - objective.weight  # d
        first = 2 * scale * (difference @ hessian - objective.inherited)  # 2 s g: [groups, rows, cols]
        second = scale.square() * hessian.diagonal(dim1=1, dim2=2).unsqueeze(1)  # s² H_jj
        influence = 2 * scale
        # `change` is each row's objective minus that of its start, and `least` the smallest it has been.
        best, least = codes.clone(), torch.zeros_like(objective.constant)
        change, free_at = torch.zeros_like(least), torch.zeros_like(codes)
        group = torch.arange(codes.shape[0], device=codes.device).unsqueeze(1)
        tenures = self.tenure + 1 + torch.randint(self.tenure + 1, (self.moves, *least.shape, 1), generator=generator)
        for move, tenure in enumerate(tenures.to(codes).unbind()):
            up = torch.where(codes < choices.high, second + first, math.inf)
            down = torch.where(codes > choices.low, second - first, math.inf)
            rise = torch.minimum(up, down)
            allowed = (free_at <= move) | (rise < (least - change).unsqueeze(-1))
            smallest, column = torch.where(allowed, rise, math.inf).min(-1)  # [groups, rows]
            place, moves_at_all = column.unsqueeze(-1), smallest.isfinite()  # a row where no move is allowed stays
            direction = torch.where(up.gather(-1, place) <= down.gather(-1, place), 1.0, -1.0)
            direction *= moves_at_all.unsqueeze(-1)
            codes.scatter_add_(-1, place, direction)
            first.addcmul_(hessian[group, column].mul_(influence), direction.mul_(scale.gather(-1, place)))
            change += torch.where(moves_at_all, smallest, 0)
            free_at.scatter_(-1, place, tenure + move)
            best = torch.where((change < least).unsqueeze(-1), codes, best)
            least = torch.minimum(change, least)
        return best.to(torch.int32)
