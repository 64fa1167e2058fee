"""Backward elimination: remove channels one after the other, each time the one that the others replace best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Pruning, PruningProblem
from roundwise.numerics.elimination import eliminated


@final
@dataclass(frozen=True)
class BackwardElimination(Pruning):
    """Remove the channel without which the error rises least, then the next one, and so on.

    The error is that of the best weights for the channels that are left. `ChannelPruning` chooses channels for the
    weights as they are: it does not know that the weights which read one channel can take over what another one gave.
    This method does, so it removes every channel that is a copy of others, at no error. It takes longer: a layer with
    n columns needs about n³ operations, as a decomposition of its moments does.

    References:
        Hassibi and Stork, Optimal Brain Surgeon, NIPS 1992: the same steps for single weights.
    """

    def reason(self, layer: LinearMap) -> str:
        return "" if layer.groups == 1 else f"it has {layer.groups} groups"

    def keep(self, problem: PruningProblem, counts: Sequence[int]) -> Sequence[Int[Tensor, "count"]]:
        gone = eliminated(problem.readers, problem.channels, min(counts, default=problem.channels))
        stay = [sorted(set(range(problem.channels)) - set(gone[: problem.channels - count])) for count in counts]
        return [torch.tensor(channels, dtype=torch.int64) for channels in stay]
