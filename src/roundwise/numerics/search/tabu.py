"""A tabu walk over codes: keep changing the best single code, even uphill, and forbid undoing it for a while.

The objective of each row changes by s² H_jj ± 2 s g_j when code j moves by one, with g = d H − c. At every
step each row makes the move that raises its objective least (or lowers it most) among those that are not tabu; a column
that was changed is tabu for a random number of steps, unless the move would give the best objective that the row ever
had. So the walk climbs out of the local minima where coordinate descent stops.

References:
    Glover, Tabu Search, ORSA Journal on Computing 1(3), 1989.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices


def walk(
    quadratic: Quadratic,
    grid: Grid,
    start: Tensor,
    choices: Choices,
    generator: torch.Generator,
    moves: int = 1000,
    tenure: int = 10,
) -> Float[Tensor, "groups rows cols"]:
    """The best codes met on a walk from `start`, row by row; so no row is worse than it was.

    Args:
        quadratic: the objective.
        grid: gives scales and zero points.
        start: codes within `choices`.
        choices: what is allowed.
        generator: of random tenures, on the CPU.
        moves: of every row.
        tenure: how many moves a changed code is left alone, at least; at most twice as many.
    """
    hessian, codes, cols = quadratic.hessian, start.float(), start.shape[-1]
    scale = grid.steps(cols).expand(codes.shape)
    matrix = (codes - expand_blocks(grid.zero_point, cols)) * scale
    first = 2 * scale * ((matrix - quadratic.weight) @ hessian - quadratic.pull)  # a code up by one: ± this,
    second = scale.square() * hessian.diagonal(dim1=1, dim2=2).unsqueeze(1)  # and this
    influence = 2 * scale
    best, least = codes.clone(), torch.zeros_like(quadratic.constant)
    change, free_at = torch.zeros_like(least), torch.zeros_like(codes)
    group = torch.arange(codes.shape[0], device=codes.device).unsqueeze(1)
    tenures = tenure + 1 + torch.randint(tenure + 1, (moves, *least.shape, 1), generator=generator)
    for move, tabu in enumerate(tenures.to(codes).unbind()):
        up = torch.where(codes < choices.high, second + first, math.inf)
        down = torch.where(codes > choices.low, second - first, math.inf)
        gain = torch.minimum(up, down)
        allowed = (free_at <= move) | (gain < (least - change).unsqueeze(-1))
        rise, column = torch.where(allowed, gain, math.inf).min(-1)
        place, moves_at_all = column.unsqueeze(-1), rise.isfinite()  # a row where nothing may move stays
        direction = torch.where(up.gather(-1, place) <= down.gather(-1, place), 1.0, -1.0)
        direction *= moves_at_all.unsqueeze(-1)
        codes.scatter_add_(-1, place, direction)
        first.addcmul_(hessian[group, column].mul_(influence), direction.mul_(scale.gather(-1, place)))
        change += torch.where(moves_at_all, rise, 0)
        free_at.scatter_(-1, place, tabu + move)
        best = torch.where((change < least).unsqueeze(-1), codes, best)
        least = torch.minimum(change, least)
    return best
