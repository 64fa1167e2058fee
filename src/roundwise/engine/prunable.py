"""Which channels of a network could go, in which groups, and how large the error would be for each count that stays.

1. Find the groups of channels that the same layers give (`graph/analysis/channels.py`).
2. Leave those that must stay, and those that a layer reads whose weights cannot be fitted; say why.
3. With samples: estimate how much the network's output feels each layer that reads channels, and collect the
   moments of these layers in one pass. Without: take white inputs.
4. As soon as the moments of all readers of a group are there, ask each method which channels stay for each count,
   and compute the error of the best weights that read only these.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.candidates import layers_to_compress, regression_for
from roundwise.engine.run import Run
from roundwise.engine.sensitivity import output_metrics
from roundwise.engine.stream import Stream
from roundwise.engine.unit import generator_for
from roundwise.errors import RecipeError
from roundwise.events import PassStarted
from roundwise.graph.analysis.channels import ChannelGroup, Member, find_channel_groups
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.graph.unit import Unit
from roundwise.methods.compressing import Pruning, PruningProblem
from roundwise.numerics.channel_selection import OTHERS, Reader
from roundwise.numerics.regression import Regression
from roundwise.recipe.compress import Compress
from roundwise.statistics import Addend, Gram
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


def find_prunable(graph: Graph, stage: Compress, run: Run) -> tuple[list[PrunableGroup], dict[str, Tensor]]:
    """All groups of a network's channels and what could stay of each; and S of each reader, by its name.

    Raises:
        ModelError: there are no layers, or their weights or outputs are not finite.
        RecipeError: `keep` names no layer, or a method's answer does not fit.
        MemoryBudgetError: the disk is full.
    """
    layers = {layer.weight: layer for layer in layers_to_compress(graph, stage)}
    groups = [_readable(graph, number, group, layers, stage) for number, group in enumerate(find_channel_groups(graph))]
    open_ones = [group for group in groups if not group.reason]
    measures = _Measures(graph, open_ones, stage)
    readers = list({layer.name: layer for group in open_ones for layer in group.readers}.values())
    if run.has_data and readers:
        assert run.calibration is not None
        run.progress(PassStarted(f"measuring what {number_of(len(open_ones), 'group')} of channels could become"))
        generator = generator_for(run.seed, "sensitivity")
        measures.metrics = output_metrics(graph, readers, run.calibration, run.device, generator)
        tasks = [_MeasureTask(Unit.of_layer(graph, layer), measures) for layer in readers]
        batches = list(run.calibration.batches)
        Stream(graph, batches, run.samples, tasks, keeps_inputs=True, seed=run.seed, store=run.store).run()
    else:
        for layer in readers:
            weight = measures.weight(layer)
            energy = float(weight.square().sum()) or 1.0
            measures.metrics[layer.name] = torch.eye(len(weight), dtype=torch.float64, device=weight.device) / energy
            measures.add(layer, Regression.white(weight, layer.map.bias_rows[0]))
    return [measures.found.get(group.number, group) for group in groups], measures.metrics


def _readable(
    graph: Graph, number: int, group: ChannelGroup, layers: Mapping[str, Layer], stage: Compress
) -> PrunableGroup:
    """A group, and why its channels stay if they do."""
    read = [layers[name] for name in dict.fromkeys(group.columns) if name in layers]
    names = [layers[name].name for name in (*group.rows, *group.columns) if name in layers]
    return PrunableGroup(number, group, tuple(read), (), _reason(graph, group, read, names, stage))


def _reason(graph: Graph, group: ChannelGroup, readers: Sequence[Layer], names: Sequence[str], stage: Compress) -> str:
    """Why the channels of a group stay; empty if some may go."""
    if group.reason:
        return group.reason
    if group.channels < 2:
        return "there is only one"
    kept = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in stage.keep)]
    if kept:
        return f"the recipe keeps layer '{kept[0]}'"
    if len(readers) < len(set(group.columns)) or not readers:
        return "they are read by something that is no layer"
    for layer in readers:
        (weight,) = graph.operations.find_nodes(op="get_attr", target=layer.weight)
        if len(weight.users) > 1:
            return f"{len(weight.users)} operations use the weight of layer '{layer.name}', which reads them"
        reasons = [method.reason(layer.map) for method in stage.methods]
        if all(reasons):
            return f"layer '{layer.name}' reads them, and {reasons[0]}"
    return ""


@final
@dataclass(eq=False)
class _Measures:
    """The moments of readers, as long as a group waits for those of its other readers; and what was found.

    Attributes:
        graph, groups, stage: what is measured.
        metrics: S of each reader, by its name.
        found: the groups with their options, by their numbers.
    """

    graph: Graph
    groups: Sequence[PrunableGroup]
    stage: Compress
    metrics: dict[str, Tensor] = field(default_factory=dict)
    found: dict[int, PrunableGroup] = field(default_factory=dict)
    _moments: dict[str, Regression] = field(default_factory=dict)

    def weight(self, layer: Layer) -> Float[Tensor, "rows cols"]:
        """The matrix of a reader, in float64."""
        return layer.map.to_matrix(self.graph.constants[layer.weight])[0].double()

    def add(self, layer: Layer, regression: Regression) -> None:
        """Take the moments of one more reader, and find the options of all groups that are complete with it."""
        self._moments[layer.name] = regression
        for group in self.groups:
            if group.number not in self.found and all(one.name in self._moments for one in group.readers):
                self.found[group.number] = self._with_options(group)
        waiting = {one.name for group in self.groups if group.number not in self.found for one in group.readers}
        self._moments = {name: moments for name, moments in self._moments.items() if name in waiting}

    def _with_options(self, group: PrunableGroup) -> PrunableGroup:
        readers = tuple(self._reader(group, layer) for layer in group.readers)
        problem = PruningProblem(group.name, group.group.channels, readers)
        counts = counts_of(group.group, self.stage.multiple)
        whole = [reader.explained() for reader in readers]
        options = []
        for method in self.stage.methods:
            assert isinstance(method, Pruning)
            answer = list(method.keep(problem, counts))
            _check_answer(method, group, counts, answer)
            for kept in answer:
                left = [reader.explained(reader.columns(kept)) for reader in readers]
                errors = tuple(max(0.0, all_ - some) for all_, some in zip(whole, left, strict=True))
                options.append(PruningOption(method, kept, errors))
        reason = "" if options else f"no smaller number of channels is a multiple of {self.stage.multiple}"
        return PrunableGroup(group.number, group.group, group.readers, tuple(options), reason)

    def _reader(self, group: PrunableGroup, layer: Layer) -> Reader:
        weight = self.weight(layer)
        owner = owners(layer, [member for member in group.group.members if member.constant == layer.weight])
        return Reader(weight, self._moments[layer.name], self.metrics[layer.name], owner.to(weight.device))


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


@final
@dataclass(frozen=True, eq=False)
class _MeasureTask:
    """A reader whose moments are collected. The stream has it solve, which hands the moments on."""

    unit: Unit
    measures: _Measures

    @property
    def changes(self) -> bool:
        """False: the layer stays as it is."""
        return False

    @property
    def addend(self) -> fx.Node | None:
        """None: the targets are the layer's own outputs."""
        return None

    def statistics(self, samples: int, seed: int) -> Gram:
        """Empty moments."""
        return Gram.empty(self.unit.layer.map, samples, generator_for(seed, f"{self.unit.name}: samples"))

    def collect(
        self, statistics: Gram, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the moments."""
        (pair,) = inputs
        statistics.add(pair.current, targets, samples)

    def solve(self, statistics: Gram, seed: int) -> list[Any]:
        """Hand the moments on; no weights change."""
        layer = self.unit.layer
        self.measures.add(layer, regression_for(statistics, self.measures.weight(layer)))
        return []

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the moments and for decompositions of them, at most."""
        _, rows, cols = self.unit.layer.map.matrix_shape
        return Gram.bytes_needed(self.unit.layer.map, samples, positions) + 8 * 6 * (cols + rows) ** 2

    def work(self, items_per_sample: int, samples: int) -> float:
        """Collecting moments is what takes time."""
        return Gram.forward_passes * samples * items_per_sample
