"""What a network costs with fewer channels, and the counts of channels that a budget asks for.

A layer whose rows are in one group and whose columns are in another costs

    MACs of the layer  ×  share of its rows that are left  ×  share of its columns that are left                     (1)

so the cost of a count depends on the other counts. A choice of ratios wants costs that add up. Near given counts they
do: (1) changes by its derivatives. So the choice is made several times, each time with the derivatives at counts
between the last choice and those before. The first counts have the same share in every group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.engine.candidates import Cost
from roundwise.engine.prunable import PrunableGroup
from roundwise.graph.analysis.channels import Member
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.costs import costs_of
from roundwise.graph.graph import Graph
from roundwise.methods.compressing import LayerOptions, RatioChoice

ROUNDS = 8
"""How often the choice is made. Later rounds are closer to the true costs."""

TIGHTER = 0.97
"""After a round whose true cost is above the budget, the next one has a budget that is 3 % smaller."""


@final
@dataclass(frozen=True, eq=False)
class _LayerCost:
    """What a layer costs, by the counts of the groups.

    Attributes:
        layer: the layer.
        macs: of all its calls, with all channels.
        sizes: of the dimensions of its weight for output and for input channels.
        channels: for these two dimensions, how many places a channel of each group has there.
    """

    layer: Layer
    macs: int
    sizes: tuple[int, int]
    channels: tuple[dict[int, int], dict[int, int]]

    def shares(self, gone: Sequence[float]) -> tuple[float, float]:
        """The shares of rows and of columns that are left.

        Args:
            gone: how many channels of each group are removed.
        """
        rows, columns = (
            1 - sum(gone[group] * places for group, places in channels.items()) / size
            for size, channels in zip(self.sizes, self.channels, strict=True)
        )
        return rows, columns

    def cost(self, gone: Sequence[float]) -> tuple[float, float]:
        """MACs and parameters."""
        rows, columns = self.shares(gone)
        bias = 0 if self.layer.map.bias is None else self.layer.map.bias.numel()
        return self.macs * rows * columns, math.prod(self.layer.map.weight_shape) * rows * columns + bias * rows


@final
class ChannelCosts:
    """The cost of all layers of a network, by the counts of channels that are left."""

    def __init__(self, graph: Graph, groups: Sequence[PrunableGroup], unit: str) -> None:
        """Take the costs with all channels.

        Args:
            graph: the network.
            groups: its groups of channels.
            unit: "macs" or "parameters".
        """
        self._groups, self._unit = groups, unit
        now = costs_of(graph)
        by_weight: dict[str, list[tuple[int, Member]]] = {}
        for place, group in enumerate(groups):
            for member in group.group.members:
                by_weight.setdefault(member.constant, []).append((place, member))
        self._layers = [
            _layer_cost(layer, now.of(layer.calls)[0], by_weight.get(layer.weight, [])) for layer in find_layers(graph)
        ]

    def total(self, counts: Sequence[float]) -> float:
        """The cost of the network with these counts of channels."""
        return sum(layer.cost(self._gone(counts))[self._unit == "parameters"] for layer in self._layers)

    def of_layers(self, counts: Sequence[int]) -> dict[str, Cost]:
        """The cost of each layer, by its name."""
        gone = self._gone(counts)
        return {one.layer.name: Cost(*map(round, one.cost(gone))) for one in self._layers}

    def sizes(self, counts: Sequence[int]) -> dict[str, tuple[int, int]]:
        """The numbers of output and input channels that each layer has left; of one group where it has several."""
        gone = self._gone(counts)
        return {
            one.layer.name: (round(one.sizes[0] * rows), round(one.sizes[1] * columns))
            for one in self._layers
            for rows, columns in (one.shares(gone),)
        }

    def choose(self, choice: RatioChoice, budget: float) -> list[int] | None:
        """The number of the option of each group, 0 if all its channels stay; None if nothing is within the budget."""
        least, most = self._counts([_smallest(group) for group in self._groups]), self._counts([0] * len(self._groups))
        if self.total(least) > budget:
            return None
        around = self._between(least, most, budget)
        best: tuple[float, list[int]] | None = None
        aim = budget
        for number in range(ROUNDS):
            chosen = self._round(choice, around, aim)
            counts = self._counts(chosen)
            error = sum(_error(group, option) for group, option in zip(self._groups, chosen, strict=True))
            if self.total(counts) > budget:
                aim *= TIGHTER
            elif best is None or error < best[0]:
                best = error, chosen
            around = [(number * one + count) / (number + 1) for one, count in zip(around, counts, strict=True)]
        return [_smallest(group) for group in self._groups] if best is None else best[1]

    def _round(self, choice: RatioChoice, around: Sequence[float], budget: float) -> list[int]:
        """A choice with costs that are linear in the counts, as they are near `around`."""
        slopes = self._slopes(around)
        layers = [
            LayerOptions(
                group.name,
                tuple(slope * count for count in (group.group.channels, *(len(one.kept) for one in group.options))),
                (0.0, *(sum(option.errors) for option in group.options)),
            )
            for group, slope in zip(self._groups, slopes, strict=True)
        ]
        within = budget - self.total(around) + sum(s * count for s, count in zip(slopes, around, strict=True))
        return choice.choose(layers, max(within, sum(min(one.costs) for one in layers)))

    def _slopes(self, counts: Sequence[float]) -> list[float]:
        """The derivative of the cost by each group's count."""
        slopes, gone = [0.0] * len(self._groups), self._gone(counts)
        for one in self._layers:
            shares = one.shares(gone)
            factor = one.macs if self._unit == "macs" else math.prod(one.layer.map.weight_shape)
            for other, size, channels in zip(reversed(shares), one.sizes, one.channels, strict=True):
                for group, places in channels.items():
                    slopes[group] += factor * other * places / size
        return slopes

    def _between(self, least: Sequence[float], most: Sequence[float], budget: float) -> list[float]:
        """Counts with the same share of the way from the smallest to all, that cost as much as the budget."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.total(_mixed(least, most, middle)) <= budget else (low, middle)
        return _mixed(least, most, low)

    def _counts(self, options: Sequence[int]) -> list[float]:
        return [
            len(group.options[number - 1].kept) if number else group.group.channels
            for group, number in zip(self._groups, options, strict=True)
        ]

    def _gone(self, counts: Sequence[float]) -> list[float]:
        return [group.group.channels - count for group, count in zip(self._groups, counts, strict=True)]


def _layer_cost(layer: Layer, macs: int, found: Sequence[tuple[int, Member]]) -> _LayerCost:
    rows, columns = (1, 0) if layer.map.transposed else (0, 1)
    channels: tuple[dict[int, int], dict[int, int]] = {}, {}
    for group, member in found:
        channels[member.dim != rows][group] = max(len(places) for places in member.places)
    return _LayerCost(layer, macs, (layer.map.weight_shape[rows], layer.map.weight_shape[columns]), channels)


def _mixed(least: Sequence[float], most: Sequence[float], share: float) -> list[float]:
    return [a + share * (b - a) for a, b in zip(least, most, strict=True)]


def _smallest(group: PrunableGroup) -> int:
    """The number of the option with the fewest channels; 0 if there is none."""
    numbers = range(1, len(group.options) + 1)
    return min(numbers, key=lambda number: len(group.options[number - 1].kept), default=0)


def _error(group: PrunableGroup, number: int) -> float:
    return sum(group.options[number - 1].errors) if number else 0.0
