"""Coordinate descent on codes: sweep over the columns, and set each code to its best value given all the others.

With d = ŵ − w and g = d H − c (half the gradient), changing one weight by δ changes the row's objective by

    δ² H_jj + 2 δ g_j

This parabola has its minimum at δ = −g_j / H_jj. So the best code is the allowed one nearest to
(ŵ_j − g_j / H_jj)/s + z, and no step raises the objective. After it, g ← g + δ H_j, where H_j is the j-th row of H.

All rows change their code of column j together, because they share H. The columns are visited in slices of 64. Within
a slice g is updated at once; for the columns outside it, one matrix product at its end updates g. A sweep costs as much
as one product of the weights with H, plus a few small operations for each column. Later sweeps visit only the rows that
still change.
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

SLICE = 64
"""Columns in a slice. With larger slices there are fewer large products, and more small updates within a slice."""


@final
@dataclass(frozen=True)
class Descent:
    """Sweep until no code changes, and at most `sweeps` times."""

    sweeps: int = 50

    def search(
        self, objective: Quadratic, grid: Grid, start: Real[Tensor, "groups rows cols"], choices: Choices
    ) -> Int[Tensor, "groups rows cols"]:
        """Codes whose objective is no higher than the start's, in any row, for a start within the choices.

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
        scale, zero_point = by_column(grid.scales(cols)), by_column(expand_blocks(grid.zero_point, cols))
        low, high, code = by_column(choices.low), by_column(choices.high), by_column(start.float())
        difference = (code - zero_point) * scale - by_column(objective.weight)  # d
        slope = hessian @ difference - by_column(objective.inherited)  # g
        curvature = hessian.diagonal(dim1=1, dim2=2).unsqueeze(-1)  # H_jj: [groups, cols, 1]
        # Newton's step for a slope of 1, in codes. Where an input is always zero its weight has no effect: no step.
        newton = torch.where(curvature > 0, -1 / (curvature * scale), 0.0).nan_to_num_(0.0, 0.0, 0.0)
        slices = [slice(first, min(first + SLICE, cols)) for first in range(0, cols, SLICE)]
        result, rows = code.clone(), torch.arange(shape[1], device=code.device)
        columns = _columns(code, slope, newton, scale, low, high)
        for _ in range(self.sweeps):
            changed = torch.zeros_like(code[:, 0], dtype=torch.bool)  # [groups, rows]
            for these in slices:
                before = code[:, these].clone()
                near, own = slope[:, these], hessian[:, these, these]
                # Most sweeps change few columns: find those with a code that would change, and visit only them.
                wanted = torch.addcmul(before, near, newton[:, these]).round_().clamp_(low[:, these], high[:, these])
                influences = own.unsqueeze(-1).unbind(2)  # H_j within the slice: [groups, columns of the slice, 1]
                for j in (wanted != before).any(2).any(0).nonzero().flatten().tolist():
                    code_j, slope_j, newton_j, scale_j, low_j, high_j = columns[these.start + j]  # [groups, rows]
                    move = torch.addcmul(code_j, slope_j, newton_j).round_()
                    torch.clamp(move, low_j, high_j, out=move).sub_(code_j)
                    code_j.add_(move)
                    near.addcmul_(influences[j], move.mul_(scale_j).unsqueeze(1))
                moved = code[:, these] - before
                of_rows = moved.any(1)
                if of_rows.any():
                    changed |= of_rows
                    moved *= scale[:, these]
                    for others in (slice(0, these.start), slice(these.stop, cols)):
                        if others.start < others.stop:
                            slope[:, others].baddbmm_(hessian[:, others, these], moved)
            # A row that a whole sweep left unchanged has reached its end. Once half of the rows have, drop them.
            going = changed.any(0).nonzero().flatten()
            if 2 * len(going) <= len(rows):
                result[..., rows] = code
                rows = rows[going]
                matrices = code, slope, newton, scale, low, high
                code, slope, newton, scale, low, high = (matrix[..., going] for matrix in matrices)
                columns = _columns(code, slope, newton, scale, low, high)
            if not len(going):
                break
        result[..., rows] = code
        return result.mT.to(torch.int32)


def _columns(*matrices: Tensor) -> list[tuple[Tensor, ...]]:
    """Views of every column, made all at once: made one by one they would take longer than the arithmetic."""
    return list(zip(*(matrix.unbind(1) for matrix in matrices), strict=True))
