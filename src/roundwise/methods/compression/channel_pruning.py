"""Channel pruning: the LASSO chooses the channels that stay, and least squares fits the weights that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Pruning, PruningProblem
from roundwise.numerics.lasso import lasso_path


@final
@dataclass(frozen=True)
class ChannelPruning(Pruning):
    """Remove channels without which the layers that read them can still compute nearly the same.

        1. Multiply each channel by a number. Find the numbers that reproduce the outputs of the layers that read the
           channels, under a penalty for their absolute values (the LASSO): the larger the penalty, the more numbers are
           zero.
        2. For each count, the channels that stay are those whose numbers are not zero at the smallest penalty that
           leaves this number of channels.

    Channels of layers that are added to each other go together; the outputs of all layers that read them count. Where
    the paper solves the LASSO on a few hundred samples of positions, here it is solved exactly, for all penalties, from
    second moments of all of them (`numerics/channel_selection.py`, `numerics/lasso.py`). Without samples, the squared
    weights decide, as in `MagnitudePruning`.

    References:
        He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, arXiv:1707.06168.
    """

    def reason(self, layer: LinearMap) -> str:
        return "" if layer.groups == 1 else f"it has {layer.groups} groups"

    def keep(self, problem: PruningProblem, counts: Sequence[int]) -> Sequence[Int[Tensor, "count"]]:
        moments = [reader.lasso(problem.channels) for reader in problem.readers]
        products, target = sum(a for a, _ in moments), sum(b for _, b in moments)
        assert isinstance(products, Tensor)
        assert isinstance(target, Tensor)
        # Scores break ties: channels that come in late, or never because they do not vary, go first.
        order = torch.zeros(problem.channels)
        found: dict[int, Tensor] = {}
        for event, point in enumerate(lasso_path(products, target, most=max(counts, default=0))):
            order[point.active & (order == 0)] = 1 / (1 + event)
            found[int(point.active.sum())] = point.active.cpu()
        return [_fill(found, count, order) for count in counts]


def _fill(found: dict[int, Tensor], count: int, order: Tensor) -> Tensor:
    """The active channels at the smallest penalty with `count` of them; if none has, of fewer, and others added."""
    fewer = [size for size in found if size <= count]
    active = found[max(fewer)] if fewer else torch.zeros(len(order), dtype=torch.bool)
    ranking = (order + 2 * active).argsort(descending=True, stable=True)
    return ranking[:count].sort().values
