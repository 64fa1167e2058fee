"""Coordinate descent on codes: sweep over the columns, and set each code to its best value given all the others.

With d = ŵ − w and g = d H − c (half the gradient), changing one weight by δ changes the row's objective by

    δ² H_jj + 2 δ g_j

This parabola has its minimum at δ = −g_j / H_jj. So the best code is the allowed one nearest to
(ŵ_j − g_j / H_jj)/s + z, and no step raises the objective. After it, g ← g + δ H_j, where H_j is the j-th row of H.

All rows change their code of column j together, because they share H. Within a block of columns g is updated at once;
for the columns outside the block, one matrix product at the block's end updates it. A sweep costs as much as one
product of the weights with H, plus a few small operations for each column. Later sweeps visit only the rows that still
change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int, Real
from torch import Tensor

from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices

BLOCK = 64
"""Columns in a block. With larger blocks there are fewer large products, and more small updates within a block."""


@final
@dataclass(frozen=True)
class Descent:
    """Sweep until no code changes, and at most `sweeps` times."""

    sweeps: int = 50

    def search(
        self, objective: Quadratic, grid: Grid, start: Real[Tensor, "groups rows cols"], choices: Choices
    ) -> Int[Tensor, "groups rows cols"]:
        """Codes whose objective is no higher than the start's, in any row.

        Args:
            objective: what is lowered.
            grid: gives scales and zero points.
            start: codes; one outside its choices moves inside.
            choices: the codes that are allowed.
        """
        hessian, cols = objective.hessian, start.shape[-1]  # H: [groups, cols, cols]
        shape = start.shape

        def by_column(matrix: Tensor) -> Tensor:
            return matrix.expand(shape).mT.contiguous()  # [groups, cols, rows]

        # From here on every matrix is [groups, cols, rows], so that the codes of one column are neighbours in memory.
        scale, zero_point = by_column(grid.steps(cols)), by_column(expand_blocks(grid.zero_point, cols))
        low, high, code = by_column(choices.low), by_column(choices.high), by_column(start.float())
        slope = hessian @ ((code - zero_point) * scale - by_column(objective.weight)) - by_column(objective.pull)  # g
        curvature = hessian.diagonal(dim1=1, dim2=2).unsqueeze(-1)  # H_jj: [groups, cols, 1]
        # Newton's step for a slope of 1, in codes. Where an input is always zero its weight has no effect: no step.
        step = torch.where(curvature > 0, -1 / (curvature * scale), 0.0).nan_to_num_(0.0, 0.0, 0.0)
        blocks = [slice(start, min(start + BLOCK, cols)) for start in range(0, cols, BLOCK)]
        result, rows = code.clone(), torch.arange(shape[1], device=code.device)
        columns = _columns(code, slope, step, scale, low, high)
        for _ in range(self.sweeps):
            changed = torch.zeros_like(code[:, 0], dtype=torch.bool)  # [groups, rows]
            for block in blocks:
                before = code[:, block].clone()
                near, own = slope[:, block], hessian[:, block, block]
                # Most sweeps change few columns: find those with a code that would change, and visit only them.
                wanted = torch.addcmul(before, near, step[:, block]).round_().clamp_(low[:, block], high[:, block])
                influences = own.unsqueeze(-1).unbind(2)  # H_j within the block: [groups, columns of the block, 1]
                for j in (wanted != before).any(2).any(0).nonzero().flatten().tolist():
                    old, gradient, newton, unit, lowest, highest = columns[block.start + j]  # each [groups, rows]
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
            # A row that a whole sweep left unchanged has reached its end. Once half of the rows have, drop them.
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
    """Views of every column, made all at once: made one by one they would take longer than the arithmetic."""
    return list(zip(*(matrix.unbind(1) for matrix in matrices), strict=True))
