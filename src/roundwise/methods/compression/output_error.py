"""Choose sizes so that the predicted error of the network's output is smallest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.methods.compressing import LayerOptions, RatioChoice
from roundwise.numerics.knapsack import knapsack


@final
@dataclass(frozen=True)
class OutputError(RatioChoice):
    """Predicted errors of the network's output add up over layers; their sum is made smallest within the budget.

    The network is not evaluated again and again: one pass over the samples gives the errors of all sizes of all
    layers, and a knapsack makes the choice. It needs no labels.
    """

    def choose(self, layers: Sequence[LayerOptions], budget: float) -> list[int]:
        return knapsack([one.costs for one in layers], [one.errors for one in layers], budget)
