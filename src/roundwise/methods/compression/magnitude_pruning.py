"""Magnitude pruning: the channels stay that are read with the largest weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Int
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Pruning, PruningProblem


@final
@dataclass(frozen=True)
class MagnitudePruning(Pruning):
    """Remove the channels that are read with the smallest weights, whatever values the channels have.

    The squared weights of all layers that read a channel are added, each as the network's output feels them. This is
    the plain choice that `ChannelPruning` is compared with. The weights that read the other channels are fitted
    likewise.

    References:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710; there the weights that give the
        channels count.
    """

    def reason(self, layer: LinearMap) -> str:
        return "" if layer.groups == 1 else f"it has {layer.groups} groups"

    def keep(self, problem: PruningProblem, counts: Sequence[int]) -> Sequence[Int[Tensor, "count"]]:
        energies = [reader.energies(problem.channels) for reader in problem.readers]
        ranking = sum(energies[1:], energies[0]).argsort(descending=True, stable=True).cpu()
        return [ranking[:count].sort().values for count in counts]
