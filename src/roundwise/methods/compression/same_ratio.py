"""Choose sizes so that every layer keeps the same share of its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.methods.compressing import LayerOptions, RatioChoice


@final
@dataclass(frozen=True)
class SameRatio(RatioChoice):
    """Every layer keeps at most the same share of its cost, the largest with which the network is within the budget.

    This is the plain choice that others are compared with. Of the sizes within the share, a layer takes the one with
    the smallest error; where no size is small enough, the cheapest.
    """

    def choose(self, layers: Sequence[LayerOptions], budget: float) -> list[int]:
        ratios = sorted({cost / one.costs[0] for one in layers for cost in one.costs if one.costs[0]}, reverse=True)
        for ratio in ratios:
            chosen = [_within(one, ratio) for one in layers]
            if sum(one.costs[option] for one, option in zip(layers, chosen, strict=True)) <= budget:
                return chosen
        return [min(range(len(one.costs)), key=one.costs.__getitem__) for one in layers]


def _within(layer: LayerOptions, ratio: float) -> int:
    """The option with the smallest error that costs at most this share of the layer; else the cheapest option."""
    options = range(len(layer.costs))
    small = [option for option in options if layer.costs[option] <= ratio * layer.costs[0]]
    return min(small, key=layer.errors.__getitem__) if small else min(options, key=layer.costs.__getitem__)
