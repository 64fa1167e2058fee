"""Coordinate descent on codes: sweep the columns, set each code to the best of its choices given all others.

With g = d H − c (half the gradient), changing one weight by δ changes the row's objective by δ² H_jj + 2 δ g_j. So
the best code is the allowed one nearest to where the parabola has its minimum, (ŵ_j − g_j / H_jj) / s + z, and no step
ever raises the objective. All rows take their steps at column j together, since H is the same for them; then
g ← g + δ H_j. Within a block of columns that update is made at once, and for all columns outside it in one matrix
product at the block's end. A sweep costs what one product of the weights with H costs, and a few small operations for
every column; later sweeps go over those rows alone that still change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic

BLOCK = 64
"""Columns between two matrix products."""


@final
@dataclass(frozen=True, eq=False)
class Choices:
    """The codes that a weight may get: all from `low` to `high`, `[groups, rows, cols]` as floats."""

    low: Float[Tensor, "groups rows cols"]
    high: Float[Tensor, "groups rows cols"]

    @classmethod
    def all(cls, grid: Grid, weight: Float[Tensor, "groups rows cols"]) -> Choices:
        """Every code of the grid."""
        book = grid.codebook
        return cls(torch.full_like(weight, book.qmin), torch.full_like(weight, book.qmax))

    @classmethod
    def floor_or_ceil(cls, grid: Grid, weight: Float[Tensor, "groups rows cols"]) -> Choices:
        """The two codes next to each weight (Eq. 9), clipped to the grid."""
        floor = grid.position(weight).floor()
        return cls(grid.clip(floor), grid.clip(floor + 1))


def descend(
    quadratic: Quadratic, grid: Grid, codes: Tensor, choices: Choices, sweeps: int = 50
) -> Int[Tensor, "groups rows cols"]:
    """Sweep until nothing changes any more, or `sweeps` times; no step raises the objective of any row.

    Args:
        quadratic: the objective.
        grid: gives scales and zero points.
        codes: where to start.
        choices: what is allowed; a start outside moves inside.
        sweeps: at most so many.
    """
    hessian, cols = quadratic.hessian, codes.shape[-1]
    shape = codes.shape

    def by_column(matrix: Tensor) -> Tensor:
        return matrix.expand(shape).mT.contiguous()  # [groups, cols, rows]

    scale, zero_point = by_column(grid.steps(cols)), by_column(expand_blocks(grid.zero_point, cols))
    low, high, code = by_column(choices.low), by_column(choices.high), by_column(codes.float())
    slope = hessian @ ((code - zero_point) * scale - by_column(quadratic.weight)) - by_column(quadratic.pull)
    curvature = hessian.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    # Where an input is always zero the weight does not matter, and its code stays.
    step = torch.where(curvature > 0, -1 / (curvature * scale), 0.0).nan_to_num_(0.0, 0.0, 0.0)
    blocks = [slice(start, min(start + BLOCK, cols)) for start in range(0, cols, BLOCK)]
    result, rows = code.clone(), torch.arange(shape[1], device=code.device)
    columns = _columns(code, slope, step, scale, low, high)
    for _ in range(sweeps):
        changed = torch.zeros_like(code[:, 0], dtype=torch.bool)
        for block in blocks:
            before = code[:, block].clone()
            near, own = slope[:, block], hessian[:, block, block]
            # Most sweeps change few columns: look for those that have something to gain, and visit them alone.
            wanted = torch.addcmul(before, near, step[:, block]).round_().clamp_(low[:, block], high[:, block])
            influences = own.unsqueeze(-1).unbind(2)
            for j in (wanted != before).any(2).any(0).nonzero().flatten().tolist():
                old, gradient, newton, unit, lowest, highest = columns[block.start + j]
                move = torch.addcmul(old, gradient, newton).round_()
                torch.clamp(move, lowest, highest, out=move).sub_(old)
                old.add_(move)
                near.addcmul_(influences[j], move.mul_(unit).unsqueeze(1))
            moved = code[:, block] - before
            of_rows = moved.any(1)
            if of_rows.any():
                changed |= of_rows
                moved *= scale[:, block]
                for others in (slice(0, block.start), slice(block.stop, cols)):
                    if others.start < others.stop:
                        slope[:, others].baddbmm_(hessian[:, others, block], moved)
        # A row that a whole sweep has not changed never will be. Once half of them are done, go on with the others.
        going = changed.any(0).nonzero().flatten()
        if 2 * len(going) <= len(rows):
            result[..., rows] = code
            rows = rows[going]
            code, slope, step, scale, low, high = (m[..., going] for m in (code, slope, step, scale, low, high))
            columns = _columns(code, slope, step, scale, low, high)
        if not len(going):
            break
    result[..., rows] = code
    return result.mT.to(torch.int32)


def _columns(*matrices: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of every column, made at once: one at a time they would take longer than the arithmetic."""
    return list(zip(*(matrix.unbind(1) for matrix in matrices), strict=True))
