"""Backward elimination of channels: remove one after the other, each time the one whose loss costs least.

The error of a set of channels is that of the best weights for them (`numerics/channel_selection.py`, Eq. 1), so a
channel costs only what the channels that are left cannot make up for. Let M = G H⁻¹ be the best weights now, P = H⁻¹,
and let i stand for the columns of one channel. Without it,

    the error rises by      tr S M_i P_ii⁻¹ M_iᵀ                                                                    (1)
    the best weights are    M − M_i P_ii⁻¹ P_i                    and H⁻¹ becomes    P − P_iᵀ P_ii⁻¹ P_i            (2)

(1) is known for all channels at once, and (2) is one small update. So all counts, from all channels down to one, are
found together. With several layers that read the channels, the rises add up.

References:
    Hassibi and Stork, Optimal Brain Surgeon, NIPS 1992: the same formulas for single weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.numerics.channel_selection import Reader
from roundwise.numerics.regression import cholesky


def eliminated(readers: Sequence[Reader], channels: int, fewest: int) -> list[int]:
    """The channels in the order in which they go, until only the fewest are left.

    Args:
        readers: the layers that read the channels.
        channels: how many there are.
        fewest: how many stay, 0 or more.
    """
    states = [_State(reader, channels) for reader in readers]
    left, gone = list(range(channels)), []
    while len(left) > fewest:
        rises = sum((state.rises(left) for state in states), torch.zeros(len(left), dtype=torch.float64))
        gone.append(left.pop(int(rises.argmin())))
        for state in states:
            state.remove(gone[-1])
    return gone


@final
class _State:
    """P, and M multiplied by the root of S, for the channels that are left."""

    def __init__(self, reader: Reader, channels: int) -> None:
        factor = cholesky(reader.regression.second)
        self._inverse: Float[Tensor, "cols cols"] = torch.cholesky_inverse(factor)
        best = torch.cholesky_solve(reader.regression.cross.mT, factor).mT
        self._weights: Float[Tensor, "rows cols"] = torch.linalg.cholesky(reader.metric).mT @ best
        self._columns = [(reader.owner == channel).nonzero().flatten() for channel in range(channels)]

    def rises(self, left: Sequence[int]) -> Float[Tensor, "left"]:
        """How much the error rises without each channel (Eq. 1), on the CPU."""
        columns = [self._columns[channel] for channel in left]
        if len({len(one) for one in columns}) == 1:
            return self._rises(torch.stack(columns))
        return torch.cat([self._rises(one.unsqueeze(0)) for one in columns])

    def _rises(self, columns: Int[Tensor, "channels taps"]) -> Float[Tensor, "channels"]:
        blocks = self._inverse[columns[:, :, None], columns[:, None, :]]
        weights = self._weights[:, columns].permute(1, 2, 0)
        rises: Tensor = torch.linalg.solve(blocks, weights @ weights.mT).diagonal(dim1=1, dim2=2).sum(1)
        return rises.cpu()

    def remove(self, channel: int) -> None:
        """Go on without a channel (Eq. 2)."""
        columns = self._columns[channel]
        update = torch.linalg.solve(self._inverse[columns[:, None], columns], self._inverse[columns])
        self._weights = self._weights - self._weights[:, columns] @ update
        self._inverse = self._inverse - self._inverse[:, columns] @ update
