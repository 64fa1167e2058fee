"""What a network costs with fewer channels and with chains in the place of layers; and the choice within a budget.

A layer whose rows are in one group of channels and whose columns are in another costs

    MACs of the layer  ×  share of its rows that are left  ×  share of its columns that are left                     (1)

and of a chain, the first part costs its share of the columns, the last part its share of the rows. So the cost of a
count of channels depends on the other counts, and on what layers become. A choice of ratios wants costs that add up.
Near a given choice they do: (1) changes by its derivatives. So the choice is made several times, each time with the
derivatives at counts between the last choice and those before:

1. Begin with counts that have the same share in every group.
2. Choose counts, and what each layer becomes, with costs as they are near the choice in hand.
3. With these counts the costs of chains are exact: choose once more what each layer becomes.
4. Repeat from 2; keep the best choice that is within the budget.

Where layers may become chains too, all this is done from several beginnings: fewer channels alone, chains alone, and
some of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from roundwise.engine.candidates import Candidate, Cost
from roundwise.engine.prunable import PrunableGroup
from roundwise.graph.analysis.channels import Member
from roundwise.graph.costs import costs_of
from roundwise.graph.graph import Graph
from roundwise.methods.compressing import LayerOptions, RatioChoice
from roundwise.recipe.compress import CostUnit

ROUNDS = 8
"""How often the choice is made from each beginning. Later rounds are closer to the true costs."""

TIGHTER = 0.97
"""After a round whose true cost is above the budget, the next one has a budget that is 3 % smaller."""


class Sizes(NamedTuple):
    """A choice of sizes, by numbers of options; 0 leaves a group or a layer as it is.

    Attributes:
        groups: for each group of channels.
        layers: for each layer.
    """

    groups: list[int]
    layers: list[int]


class _Factor(NamedTuple):
    """A layer, or a part of a chain.

    Attributes:
        cost: with all channels, of what falls with the channels: no biases, and no seconds that it takes in any case.
        rows, columns: whether it has the output and the input channels of the layer.
    """

    cost: Cost
    rows: bool
    columns: bool


@final
@dataclass(frozen=True, eq=False)
class _LayerCost:
    """What a layer costs, by the counts of the groups and by what it becomes.

    Attributes:
        candidate: the layer, and what it could become.
        whole: what it costs as it is, with all channels and all calls.
        sizes: of the dimensions of its weight for output and for input channels.
        channels: for these two dimensions, how many places a channel of each group has there.
    """

    candidate: Candidate
    whole: Cost
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

    def cost(self, gone: Sequence[float], option: int, unit: CostUnit) -> float:
        """What the layer costs.

        Args:
            gone: how many channels of each group are removed.
            option: what the layer becomes.
            unit: what is counted.
        """
        rows, columns = self.shares(gone)
        shares = ((rows if factor.rows else 1) * (columns if factor.columns else 1) for factor in self._factors(option))
        cost = sum(factor.cost.of(unit) * share for factor, share in zip(self._factors(option), shares, strict=True))
        if unit == "parameters":
            bias = self.candidate.layer.map.bias
            return cost + rows * (self.sizes[0] if option else 0 if bias is None else bias.numel())
        return cost + (self.candidate.seconds.fixed if unit == "latency" and not option else 0)

    def slopes(self, gone: Sequence[float], option: int, unit: CostUnit) -> Iterator[tuple[int, float]]:
        """The number of each group that the layer reads or gives, and the derivative of its cost by that one's count.

        Args:
            gone: how many channels of each group are removed.
            option: what the layer becomes.
            unit: what is counted; biases are not.
        """
        rows, columns = self.shares(gone)
        for factor in self._factors(option):
            has = factor.rows, factor.columns
            for own, other, share, size, channels in zip(
                has, reversed(has), (columns, rows), self.sizes, self.channels, strict=True
            ):
                for group, places in channels.items() if own else ():
                    yield group, factor.cost.of(unit) * (share if other else 1) * places / size

    def _factors(self, option: int) -> list[_Factor]:
        """The parts of what the layer becomes."""
        if not option:
            return [_Factor(self.whole, rows=True, columns=True)]
        parts = self.candidate.options[option - 1].parts
        last = len(parts) - 1
        return [_Factor(one, rows=place == last, columns=place == 0) for place, one in enumerate(parts)]


@final
class CompressionCosts:
    """The cost of all layers of a network, by the counts of channels that are left and by what each layer becomes."""

    def __init__(
        self, graph: Graph, groups: Sequence[PrunableGroup], candidates: Sequence[Candidate], unit: CostUnit
    ) -> None:
        """Take the costs with all channels.

        Args:
            graph: the network.
            groups: its groups of channels; none if no channels are to be removed.
            candidates: all its layers.
            unit: what is counted.
        """
        self._groups, self._unit = groups, unit
        now = costs_of(graph)
        by_weight: dict[str, list[tuple[int, Member]]] = {}
        for place, group in enumerate(groups):
            for member in group.group.members:
                by_weight.setdefault(member.constant, []).append((place, member))
        self._layers = [
            _layer_cost(one, now.of(one.layer.calls)[0], by_weight.get(one.layer.weight, [])) for one in candidates
        ]
        self.nothing = Sizes([0] * len(groups), [0] * len(candidates))

    def total(self, sizes: Sizes) -> float:
        """The cost of the network with a choice of sizes."""
        return self._total(self._counts(sizes.groups), sizes.layers)

    def of_layers(self, sizes: Sizes) -> dict[str, Cost]:
        """The cost of each layer, by its name."""
        gone = self._gone(self._counts(sizes.groups))
        return {
            one.candidate.layer.name: Cost(
                round(one.cost(gone, option, "macs")),
                round(one.cost(gone, option, "parameters")),
                one.cost(gone, option, "latency"),
            )
            for one, option in zip(self._layers, sizes.layers, strict=True)
        }

    def channels_left(self, sizes: Sizes) -> dict[str, tuple[int, int]]:
        """The numbers of output and input channels that each layer has left; of one group where it has several."""
        gone = self._gone(self._counts(sizes.groups))
        return {
            one.candidate.layer.name: (round(one.sizes[0] * rows), round(one.sizes[1] * columns))
            for one in self._layers
            for rows, columns in (one.shares(gone),)
        }

    def least(self) -> float:
        """The smallest cost that can be reached."""
        return self.total(self._smallest())

    def choose(self, choice: RatioChoice, budget: float) -> Sizes | None:
        """The best choice within a budget that is found; None if nothing is within it."""
        smallest = self._smallest()
        if self.total(smallest) > budget:
            return None
        best: tuple[float, Sizes] | None = None
        for around in self._beginnings(budget):
            found = self._search(choice, around, budget)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return smallest if best is None else best[1]

    def _beginnings(self, budget: float) -> list[list[float]]:
        """Counts of channels to begin with."""
        most, least = self._counts(self.nothing.groups), self._counts(self._smallest().groups)
        whole = self._total(most, self.nothing.layers)
        if not any(group.options for group in self._groups):
            return [most]
        shares = (1.0, 0.5, 0.0) if self._open_layers() else (1.0,)  # how much of the way is gone by fewer channels
        return [self._between(least, most, whole * (budget / whole) ** share) for share in shares]

    def _search(self, choice: RatioChoice, around: list[float], budget: float) -> tuple[float, Sizes] | None:
        """The best choice that is found from given counts, with its error."""
        best: tuple[float, Sizes] | None = None
        layers, aim = self._layers_for(choice, around, budget) or list(self.nothing.layers), budget
        for number in range(ROUNDS if any(group.options for group in self._groups) else 1):
            chosen = self._round(choice, around, layers, aim)
            counts = self._counts(chosen.groups)
            layers = chosen.layers
            if any(group.options for group in self._groups):
                layers = self._layers_for(choice, counts, budget) or layers
            sizes = Sizes(chosen.groups, layers)
            error = self._error(sizes)
            if self.total(sizes) > budget * (1 + 1e-9):
                aim *= TIGHTER
            elif best is None or error < best[0]:
                best = error, sizes
            around = [(number * one + count) / (number + 1) for one, count in zip(around, counts, strict=True)]
        return best

    def _round(self, choice: RatioChoice, around: Sequence[float], layers: Sequence[int], budget: float) -> Sizes:
        """A choice with costs that add up, as they do near `around` and `layers`."""
        slopes, gone = self._slopes(around, layers), self._gone(around)
        items = [
            LayerOptions(
                group.name,
                tuple(slope * count for count in (group.group.channels, *(len(one.kept) for one in group.options))),
                (0.0, *(sum(option.errors) for option in group.options)),
            )
            for group, slope in zip(self._groups, slopes, strict=True)
        ]
        places = self._open_layers()
        items += [self._options(self._layers[place], gone) for place in places]
        fixed = self._total(around, layers) - sum(s * count for s, count in zip(slopes, around, strict=True))
        fixed -= sum(self._layers[place].cost(gone, layers[place], self._unit) for place in places)
        chosen = choice.choose(items, max(budget - fixed, sum(min(one.costs) for one in items)))
        return Sizes(chosen[: len(slopes)], self._spread(chosen[len(slopes) :]))

    def _layers_for(self, choice: RatioChoice, counts: Sequence[float], budget: float) -> list[int] | None:
        """What each layer becomes, with given counts; None if the budget is too small for them."""
        gone, places = self._gone(counts), self._open_layers()
        items = [self._options(self._layers[place], gone) for place in places]
        left = budget - self._total(counts, self.nothing.layers) + sum(one.costs[0] for one in items)
        if sum(min(one.costs) for one in items) > left:
            return None
        return self._spread(choice.choose(items, left)) if items else list(self.nothing.layers)

    def _options(self, layer: _LayerCost, gone: Sequence[float]) -> LayerOptions:
        """The costs and errors of what a layer could become."""
        options = layer.candidate.options
        costs = tuple(layer.cost(gone, option, self._unit) for option in range(len(options) + 1))
        return LayerOptions(layer.candidate.layer.name, costs, (0.0, *(option.error for option in options)))

    def _slopes(self, counts: Sequence[float], layers: Sequence[int]) -> list[float]:
        """The derivative of the cost by each group's count."""
        slopes, gone = [0.0] * len(self._groups), self._gone(counts)
        for one, option in zip(self._layers, layers, strict=True):
            for group, slope in one.slopes(gone, option, self._unit):
                slopes[group] += slope
        return slopes

    def _between(self, least: Sequence[float], most: Sequence[float], budget: float) -> list[float]:
        """Counts with the same share of the way from the smallest to all, that cost as much as the budget."""
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            fits = self._total(_mixed(least, most, middle), self.nothing.layers) <= budget
            low, high = (middle, high) if fits else (low, middle)
        return _mixed(least, most, low)

    def _smallest(self) -> Sizes:
        """The cheapest choice."""
        counts = [[_count(group, number) for number in range(len(group.options) + 1)] for group in self._groups]
        groups = [min(range(len(one)), key=one.__getitem__) for one in counts]
        gone = self._gone(self._counts(groups))
        costs = [self._options(one, gone).costs for one in self._layers]
        layers = [min(range(len(one)), key=one.__getitem__) for one in costs]
        return Sizes(groups, layers)

    def _error(self, sizes: Sizes) -> float:
        groups = sum(sum(g.options[n - 1].errors) for g, n in zip(self._groups, sizes.groups, strict=True) if n)
        layers = sum(one.candidate.options[n - 1].error for one, n in zip(self._layers, sizes.layers, strict=True) if n)
        return groups + layers

    def _open_layers(self) -> list[int]:
        """The places of layers that could become chains."""
        return [place for place, one in enumerate(self._layers) if one.candidate.options]

    def _spread(self, chosen: Sequence[int]) -> list[int]:
        """The choice for the open layers as one for all layers."""
        layers = list(self.nothing.layers)
        for place, option in zip(self._open_layers(), chosen, strict=True):
            layers[place] = option
        return layers

    def _total(self, counts: Sequence[float], layers: Sequence[int]) -> float:
        gone = self._gone(counts)
        return sum(one.cost(gone, option, self._unit) for one, option in zip(self._layers, layers, strict=True))

    def _counts(self, options: Sequence[int]) -> list[float]:
        return [_count(group, number) for group, number in zip(self._groups, options, strict=True)]

    def _gone(self, counts: Sequence[float]) -> list[float]:
        return [group.group.channels - count for group, count in zip(self._groups, counts, strict=True)]


def _layer_cost(candidate: Candidate, macs: int, found: Sequence[tuple[int, Member]]) -> _LayerCost:
    layer = candidate.layer
    rows, columns = (1, 0) if layer.map.transposed else (0, 1)
    channels: tuple[dict[int, int], dict[int, int]] = {}, {}
    for group, member in found:
        channels[member.dim != rows][group] = max(len(places) for places in member.places)
    whole = Cost(macs, math.prod(layer.map.weight_shape), candidate.seconds.by_channels)
    return _LayerCost(candidate, whole, (layer.map.weight_shape[rows], layer.map.weight_shape[columns]), channels)


def _mixed(least: Sequence[float], most: Sequence[float], share: float) -> list[float]:
    return [a + share * (b - a) for a, b in zip(least, most, strict=True)]


def _count(group: PrunableGroup, number: int) -> int:
    """How many channels stay with an option."""
    return len(group.options[number - 1].kept) if number else group.group.channels
