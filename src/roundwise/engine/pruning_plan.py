"""What pruning does to a network: which channels go from each group, and what is known of the layers."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from roundwise.engine.candidates import Cost
from roundwise.engine.prunable import PrunableGroup, PruningOption
from roundwise.engine.pruning_costs import ChannelCosts
from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.graph import Graph
from roundwise.methods.compressing import CompressionMethod
from roundwise.methods.compression import COMPRESSION_METHODS
from roundwise.recipe.compress import Compress
from roundwise.report_compression import CompressionReport
from roundwise.wording import number_of


@final
@dataclasses.dataclass(frozen=True, eq=False)
class PruningPlan:
    """What goes, and what is known of the layers.

    Attributes:
        chosen: the groups that lose channels, and what stays of each.
        layers: all layers before, by name.
        before, after: their costs.
        sizes: the numbers of output and of input channels that are left of each layer.
        methods: the names of the methods that removed channels of a layer; of no other layers.
        reasons: why no channels of a layer were removed, by the layer's name.
        readers: for each layer that reads fewer channels, the errors that were predicted for it.
        fitted: the layers that get new weights: these, and those after them.
        metrics: S of these layers, without the rows that go.
    """

    chosen: list[tuple[PrunableGroup, PruningOption]]
    layers: dict[str, Layer]
    before: dict[str, Cost]
    after: dict[str, Cost]
    sizes: dict[str, tuple[int, int]]
    methods: dict[str, str]
    reasons: dict[str, str]
    readers: dict[str, float]
    fitted: list[str]
    metrics: dict[str, Float[Tensor, "rows rows"]]

    @classmethod
    def of(
        cls, graph: Graph, stage: Compress, groups: Sequence[PrunableGroup], metrics: Mapping[str, Tensor]
    ) -> PruningPlan:
        """Choose counts within the budget.

        Raises:
            RecipeError: it is below what can be reached.
        """
        unit, share = ("macs", stage.macs) if stage.macs is not None else ("parameters", stage.parameters)
        assert share is not None
        costs = ChannelCosts(graph, groups, unit)
        total = costs.total([group.group.channels for group in groups])
        options = costs.choose(stage.choice, share * total)
        if options is None:
            least = costs.total([min((len(o.kept) for o in g.options), default=g.group.channels) for g in groups])
            names = ", ".join(type(method).__name__ for method in stage.methods)
            left = [group for group in groups if not group.options]
            raise RecipeError(
                f"{unit}={share:g} cannot be reached: with {names} and numbers of channels that are multiples of "
                f"{stage.multiple}, at least {math.ceil(1000 * least / total) / 1000:g} of the {round(total):,} {unit} "
                f"is left, and {number_of(len(left), 'group')} of {len(groups)} must keep all channels. Give a larger "
                "share, or a smaller multiple."
            )
        chosen = [
            (group, group.options[number - 1]) for group, number in zip(groups, options, strict=True) if number > 0
        ]
        counts = {group.number: len(option.kept) for group, option in chosen}
        remaining = [counts.get(group.number, group.group.channels) for group in groups]
        readers: dict[str, float] = {}
        for group, option in chosen:
            for layer, error in zip(group.readers, option.errors, strict=True):
                readers[layer.name] = readers.get(layer.name, 0.0) + error
        layers = {layer.weight: layer for layer in find_layers(graph)}
        methods: dict[str, str] = {}
        for group, option in chosen:
            method = name_of_method(option.method)
            for member in group.group.members:
                if member.constant in layers:
                    name = layers[member.constant].name
                    known = methods.setdefault(name, method)
                    methods[name] = known if method in known else f"{known} + {method}"
        reasons: dict[str, str] = {}
        for group in groups:
            for name in (*group.group.rows, *group.group.columns) if not group.options else ():
                if name in layers:
                    reasons.setdefault(layers[name].name, group.reason)
        return cls(
            chosen,
            {layer.name: layer for layer in layers.values()},
            costs.of_layers([group.group.channels for group in groups]),
            costs.of_layers(remaining),
            costs.sizes(remaining),
            methods,
            reasons,
            readers,
            _to_fit(graph, readers, stage),
            _metrics_left(chosen, metrics, layers),
        )

    @property
    def removed(self) -> dict[int, list[int]]:
        """The channels that go, by the numbers of their groups."""
        return {group.number: _others(group, option.kept) for group, option in self.chosen}

    def report(
        self,
        name: str,
        measured: tuple[float, float] = (math.nan, math.nan),
        seconds: float = 0.0,
        note: str = "",
    ) -> CompressionReport:
        """The entry of a layer in the report.

        Args:
            name: of the layer.
            measured: the relative error of its output with the weights that it had, and with those that were fitted.
            seconds: that fitting took.
            note: for the report.
        """
        layer, before, after = self.layers[name].map, self.before[name], self.after[name]
        method = self.methods.get(name, "")
        return CompressionReport(
            name=name,
            operation=layer.operation,
            shape=layer.weight_shape,
            method=method,
            size=self.sizes[name] if method else (),
            macs=(before.macs, after.macs),
            parameters=(before.parameters, after.parameters),
            predicted=self.readers.get(name, 0.0 if method else math.nan),
            error_weights=measured[0],
            error=measured[1],
            seconds=seconds,
            note="; ".join(filter(None, (note, "" if method else self._why_it_stays(name)))),
        )

    def _why_it_stays(self, name: str) -> str:
        reason = self.reasons.get(name, "the choice of sizes left it as it is")
        return f"{reason}; its weights are fitted to its new inputs" if name in self.fitted else reason


def _to_fit(graph: Graph, readers: Collection[str], stage: Compress) -> list[str]:
    """The readers, and the layers after them that have one call and that the recipe does not keep."""
    layers, names = {layer.node: layer for layer in find_layers(graph)}, []
    after: set[fx.Node] = set()
    for node in graph.operations.nodes:
        layer = layers.get(node)
        if layer is not None and (
            layer.name in readers or (after & set(node.all_input_nodes) and _is_free(layer, stage))
        ):
            names.append(layer.name)
            after.add(node)
        elif after & set(node.all_input_nodes):
            after.add(node)
    return names


def _is_free(layer: Layer, stage: Compress) -> bool:
    """Whether a layer may get new weights: nothing else uses its weight, and the recipe does not keep it."""
    weight = layer.node.args[1]
    assert isinstance(weight, fx.Node)
    return len(weight.users) == 1 and not any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in stage.keep)


def _metrics_left(
    chosen: Sequence[tuple[PrunableGroup, PruningOption]], metrics: Mapping[str, Tensor], layers: Mapping[str, Layer]
) -> dict[str, Tensor]:
    """S of each layer, without the rows that go."""
    left = dict(metrics)
    gone: dict[str, set[int]] = {}
    for group, option in chosen:
        channels = _others(group, option.kept)
        for member in group.group.members:
            layer = layers.get(member.constant)
            if member.role == "rows" and layer is not None and layer.name in metrics:
                gone.setdefault(layer.name, set()).update(p for channel in channels for p in member.places[channel])
    for name, places in gone.items():
        rows = torch.tensor([row for row in range(len(left[name])) if row not in places], device=left[name].device)
        left[name] = left[name][rows[:, None], rows]
    return left


def name_of_method(method: CompressionMethod) -> str:
    """The name by which recipes know a method; the class of a user's own."""
    return next((name for name, kind in COMPRESSION_METHODS.items() if type(method) is kind), type(method).__name__)


def _others(group: PrunableGroup, kept: Int[Tensor, "kept"]) -> list[int]:
    stays = set(kept.tolist())
    return [channel for channel in range(group.group.channels) if channel not in stays]
