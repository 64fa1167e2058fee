"""Which channels of a network could go, in which groups, and how large the error would be for each count that stays.

1. Find the groups of channels that the same layers give (`graph/analysis/channels.py`).
2. Leave those that must stay, and those that a layer reads whose weights cannot be fitted; say why.
3. As soon as the moments of all readers of a group are known (`engine/measuring.py`), ask each method which channels
   stay for each count, and compute the error of the best weights that read only these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.engine.candidates import is_kept
from roundwise.engine.measuring import matrix_of
from roundwise.errors import RecipeError
from roundwise.graph.analysis.channels import ChannelGroup, Member, find_channel_groups
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.methods.compressing import Pruning, PruningProblem
from roundwise.numerics.channel_selection import OTHERS, Reader
from roundwise.numerics.regression import Regression
from roundwise.recipe.compress import Compress
from roundwise.wording import number_of

COUNTS = 32
"""The most counts of channels that are tried for a group. More give a finer choice, and each takes a decomposition of
the moments of all layers that read the group."""


@final
@dataclass(frozen=True, eq=False)
class PruningOption:
    """Channels of a group that could stay.

    Attributes:
        method: that chose them.
        kept: the channels, in rising order.
        errors: predicted, of each reader.
    """

    method: Pruning
    kept: Int[Tensor, "kept"]
    errors: tuple[float, ...]


@final
@dataclass(frozen=True, eq=False)
class PrunableGroup:
    """A group of channels, and what could stay of it.

    Attributes:
        number: its place in `find_channel_groups`.
        group: the channels.
        readers: the layers that read them.
        options: the choices; none if all channels stay.
        reason: why there are none.
    """

    number: int
    group: ChannelGroup
    readers: tuple[Layer, ...]
    options: tuple[PruningOption, ...]
    reason: str = ""

    @property
    def name(self) -> str:
        """Of the first layer that gives the channels."""
        return self.group.rows[0].removesuffix(".weight")


@final
class PrunableGroups:
    """All groups of a network's channels. They have no options until their readers are measured."""

    def __init__(self, graph: Graph, layers: Sequence[Layer], stage: Compress) -> None:
        """Find the groups, and those whose channels must stay.

        Args:
            graph: the network.
            layers: all of its layers.
            stage: says with which methods.
        """
        by_weight = {layer.weight: layer for layer in layers}
        self._graph, self._stage = graph, stage
        self._methods = [method for method in stage.methods if isinstance(method, Pruning)]
        found = enumerate(find_channel_groups(graph)) if self._methods else ()
        self._groups = [self._readable(number, group, by_weight) for number, group in found]
        self._moments: dict[str, tuple[Regression, Tensor]] = {}  # of readers, as long as a group waits for others

    @property
    def all(self) -> list[PrunableGroup]:
        """In the order of the network."""
        return list(self._groups)

    @property
    def layers(self) -> list[Layer]:
        """The readers of channels that may go."""
        readers = {layer.name: layer for group in self._groups if not group.reason for layer in group.readers}
        return list(readers.values())

    @property
    def subject(self) -> str:
        """For people who watch the run."""
        return f"{number_of(sum(not group.reason for group in self._groups), 'group')} of channels"

    def take(self, layer: Layer, regression: Regression, metric: Float[Tensor, "rows rows"]) -> None:
        """Take the moments of one more reader, and find the options of all groups that are complete with it.

        Raises:
            RecipeError: a method's answer does not fit.
        """
        self._moments[layer.name] = regression, metric
        waiting = set[str]()
        for place, group in enumerate(self._groups):
            names = {one.name for one in group.readers}
            if group.reason or group.options:
                continue
            if names <= self._moments.keys():
                self._groups[place] = self._with_options(group)
            else:
                waiting |= names
        self._moments = {name: moments for name, moments in self._moments.items() if name in waiting}

    def _readable(self, number: int, group: ChannelGroup, layers: Mapping[str, Layer]) -> PrunableGroup:
        """A group, and why its channels stay if they do."""
        read = [layers[name] for name in dict.fromkeys(group.columns) if name in layers]
        names = [layers[name] for name in (*group.rows, *group.columns) if name in layers]
        return PrunableGroup(number, group, tuple(read), (), self._reason(group, read, names))

    def _reason(self, group: ChannelGroup, readers: Sequence[Layer], layers: Sequence[Layer]) -> str:
        """Why the channels of a group stay; empty if some may go."""
        if group.reason:
            return group.reason
        if group.channels < 2:
            return "there is only one"
        kept = [layer.name for layer in layers if is_kept(layer, self._stage)]
        if kept:
            return f"the recipe keeps layer '{kept[0]}'"
        if len(readers) < len(set(group.columns)) or not readers:
            return "they are read by something that is no layer"
        for layer in readers:
            (weight,) = self._graph.operations.find_nodes(op="get_attr", target=layer.weight)
            if len(weight.users) > 1:
                return f"{len(weight.users)} operations use the weight of layer '{layer.name}', which reads them"
            reasons = [method.reason(layer.map) for method in self._methods]
            if all(reasons):
                return f"layer '{layer.name}' reads them, and {reasons[0]}"
        return ""

    def _with_options(self, group: PrunableGroup) -> PrunableGroup:
        readers = tuple(self._reader(group, layer) for layer in group.readers)
        problem = PruningProblem(group.name, group.group.channels, readers)
        counts = counts_of(group.group, self._stage.multiple)
        whole = [reader.explained() for reader in readers]
        options = []
        for method in self._methods:
            answer = list(method.keep(problem, counts))
            _check_answer(method, group, counts, answer)
            for kept in answer:
                left = [reader.explained(reader.columns(kept)) for reader in readers]
                errors = tuple(max(0.0, all_ - some) for all_, some in zip(whole, left, strict=True))
                options.append(PruningOption(method, kept, errors))
        reason = "" if options else f"no smaller number of channels is a multiple of {self._stage.multiple}"
        return PrunableGroup(group.number, group.group, group.readers, tuple(options), reason)

    def _reader(self, group: PrunableGroup, layer: Layer) -> Reader:
        weight, (regression, metric) = matrix_of(self._graph, layer), self._moments[layer.name]
        owner = owners(layer, [member for member in group.group.members if member.constant == layer.weight])
        return Reader(weight, regression, metric, owner.to(weight.device))


def owners(layer: Layer, members: Sequence[Member]) -> Int[Tensor, "cols"]:
    """For each column of a reader's matrix the number of the group's channel that it reads; `OTHERS` if none."""
    cols = layer.map.matrix_shape[2]
    owner, taps = torch.full((cols,), OTHERS), math.prod(layer.map.kernel)
    for member in members:
        for channel, places in enumerate(member.places if member.role == "columns" else ()):
            for place in places:
                owner[place * taps : (place + 1) * taps] = channel
    return owner


def counts_of(group: ChannelGroup, multiple: int) -> list[int]:
    """How many channels could stay: so that layers keep a multiple of a number, and at most `COUNTS` choices."""
    width = max(len(places) for places in group.members[0].places)  # rows of a layer for each channel of the group
    step = multiple // math.gcd(multiple, width)
    counts = list(range(step, group.channels, step))
    every = math.ceil(len(counts) / COUNTS)
    return counts[:: -every or None][::-1] if every > 1 else counts


def _check_answer(method: Pruning, group: PrunableGroup, counts: Sequence[int], answer: Sequence[Any]) -> None:
    """Raise unless a method, which may be a user's own, has chosen channels that exist, as many as were asked for."""
    channels = group.group.channels
    good = len(answer) == len(counts) and all(
        isinstance(kept, Tensor)
        and kept.tolist() == sorted(set(kept.tolist()))
        and len(kept) == count
        and (not count or 0 <= kept[0] <= kept[-1] < channels)
        for kept, count in zip(answer, counts, strict=True)
    )
    if not good:
        raise RecipeError(
            f"{method!r} chose channels of '{group.name}' that do not fit: for {len(counts)} counts from {counts[0]} "
            f"to {counts[-1]} of {channels} channels it must give a tensor for each count, with so many different "
            f"numbers from 0 to {channels - 1} in rising order. Correct its method `keep`."
        )
