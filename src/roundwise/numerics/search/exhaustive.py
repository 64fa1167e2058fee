"""Exhaustive search: try all 2^cols roundings of every row.

With v_j = 1 where the code of column j is rounded up and 0 where it is rounded down, ŵ = w_low + v · step, and the
objective of a row is quadratic in v. Because v_j² = v_j, it is a sum over pairs of columns,

    Σ_{j ≤ k} a_jk v_j v_k + const

and one matrix product of the a_jk with all v_j v_k gives it for all roundings at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic

AT_ONCE = 64
"""Roundings of every row in one product. A larger number needs more memory, and fewer products."""


@final
@dataclass(frozen=True)
class Exhaustive:
    """Try everything: the time doubles with every column."""

    def search(
        self, objective: Quadratic, grid: Grid, centre: Float[Tensor, "groups rows cols"]
    ) -> Int[Tensor, "groups rows cols"]:
        """The best codes next to the `centre`; the nearest codes in rows where nothing is better.

        Args:
            objective: what is lowered.
            grid: gives scales and zero points.
            centre: real-valued weights; each may be rounded up or down.
        """
        cols, hessian = centre.shape[-1], objective.hessian
        in_codes, scale = grid.in_codes(centre), grid.scales(cols)
        low, high, nearest = (grid.clip(codes) for codes in (in_codes.floor(), in_codes.floor() + 1, in_codes.round()))
        step = (high - low) * scale  # 0 where the grid ends
        base = (low - expand_blocks(grid.zero_point, cols)) * scale - objective.weight
        one, other = torch.triu_indices(cols, cols, device=centre.device)  # the pairs j ≤ k
        pairs = hessian[:, None, one, other] * step[..., one] * step[..., other] * (1 + (one != other))
        pairs[..., one == other] += 2 * step * (base @ hessian - objective.inherited)  # a: [groups, rows, pairs]

        up = (nearest > low).float()  # v: [groups, rows, cols]
        least = (pairs * up[..., one] * up[..., other]).sum(-1, keepdim=True)
        columns = torch.arange(cols, device=centre.device)
        for numbers in torch.arange(1 << cols, device=centre.device).split(AT_ONCE):
            tried = (numbers.unsqueeze(1) >> columns & 1).float()  # the binary digits: [roundings, cols]
            loss, which = (pairs @ (tried[:, one] * tried[:, other]).T).min(-1, keepdim=True)
            better = loss < least
            up, least = torch.where(better, tried[which.squeeze(-1)], up), torch.where(better, loss, least)
        has_effect = hessian.diagonal(dim1=1, dim2=2).unsqueeze(1) > 0  # False where an input is always zero
        return torch.where(has_effect, torch.where(up > 0, high, low), nearest).to(torch.int32)
