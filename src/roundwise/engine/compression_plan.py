"""What compression does to a network: which channels go, what layers become, and what is known of the layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from roundwise.engine.candidates import Candidate, Cost, Option, is_kept
from roundwise.engine.compression_costs import CompressionCosts
from roundwise.engine.prunable import PrunableGroup, PruningOption
from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.methods.compressing import CompressionMethod
from roundwise.methods.compression import COMPRESSION_METHODS
from roundwise.recipe.compress import Compress
from roundwise.report_compression import CompressionReport
from roundwise.wording import milliseconds, number_of


@final
@dataclasses.dataclass(frozen=True, eq=False)
class CompressionPlan:
    """What is done, and what is known of the layers.

    Attributes:
        pruned: the groups that lose channels, and what stays of each.
        chains: what becomes of the layers that are replaced, by name.
        layers: all layers before, by name.
        before, after: their costs.
        channels: the numbers of output and of input channels that are left of each layer.
        methods: the names of the methods that changed a layer; of no other layers.
        reasons: why a layer was not changed.
        expected: for each layer that is a chain or reads fewer channels, the errors that were predicted for it.
        expected_so_far: for each layer that is fitted, those of it and of all layers before it.
        fitted: the layers that get new weights: these, and those after them.
        metrics: S of these layers, without the rows that go.
    """

    pruned: list[tuple[PrunableGroup, PruningOption]]
    chains: dict[str, Option]
    layers: dict[str, Layer]
    before: dict[str, Cost]
    after: dict[str, Cost]
    channels: dict[str, tuple[int, int]]
    methods: dict[str, str]
    reasons: dict[str, str]
    expected: dict[str, float]
    expected_so_far: dict[str, float]
    fitted: list[str]
    metrics: dict[str, Float[Tensor, "rows rows"]]

    @classmethod
    def of(
        cls,
        graph: Graph,
        stage: Compress,
        groups: Sequence[PrunableGroup],
        candidates: Sequence[Candidate],
        metrics: Mapping[str, Tensor],
        losses: Sequence[Sequence[float]] | None = None,
        aim: float = 1.0,
    ) -> CompressionPlan:
        """Choose sizes within the budget, which can be reached.

        Args:
            graph: the network.
            stage: says the budget, and how to choose.
            groups: the groups of channels; none if no channels are to be removed.
            candidates: all layers, and what they could become.
            metrics: S of layers, by name.
            losses: for each option of each layer, what the choice compares; None compares the predicted errors.
            aim: the share of the budget that is used.
        """
        unit, share = stage.budget
        compared = candidates if losses is None else _with_losses(candidates, losses)
        costs = CompressionCosts(graph, groups, compared, unit)
        budget = max(aim * share * costs.total(costs.nothing), costs.least())
        sizes = costs.choose(stage.choice, budget)
        assert sizes is not None
        pruned = [
            (group, group.options[number - 1]) for group, number in zip(groups, sizes.groups, strict=True) if number
        ]
        layers = {one.layer.name: one.layer for one in candidates}
        chains = {
            one.layer.name: one.options[number - 1]
            for one, number in zip(candidates, sizes.layers, strict=True)
            if number
        }
        expected = _expected(pruned, chains)
        fitted = _to_fit(graph, list(layers.values()), expected, stage)
        return cls(
            pruned,
            chains,
            layers,
            costs.of_layers(costs.nothing),
            costs.of_layers(sizes),
            costs.channels_left(sizes),
            _methods(pruned, chains, layers),
            _reasons(groups, candidates),
            expected,
            _sums(graph, layers, expected, fitted),
            fitted,
            _metrics_left(pruned, metrics, layers),
        )

    @property
    def removed(self) -> dict[int, list[int]]:
        """The channels that go, by the numbers of their groups."""
        return {group.number: _others(group, option.kept) for group, option in self.pruned}

    @property
    def latency_left(self) -> float:
        """The time of all layers after, divided by that before; NaN where it was not measured."""
        before, after = (sum(one.latency for one in costs.values()) for costs in (self.before, self.after))
        return after / before

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
            measured: the relative error of its output with the simpler weights, and with those that were fitted.
            seconds: that fitting took.
            note: for the report.
        """
        layer, before, after = self.layers[name].map, self.before[name], self.after[name]
        method = self.methods.get(name, "")
        channels = self.channels[name] if " + " in method or name not in self.chains else ()
        ranks = self.chains[name].size if name in self.chains else ()
        return CompressionReport(
            name=name,
            operation=layer.operation,
            shape=layer.weight_shape,
            method=method,
            size=(*channels, *ranks) if method else (),
            macs=(before.macs, after.macs),
            parameters=(before.parameters, after.parameters),
            predicted=self.expected.get(name, 0.0 if method else math.nan),
            error_weights=measured[0],
            error=measured[1],
            seconds=seconds,
            note="; ".join(filter(None, (note, "" if method else self._why_it_stays(name)))),
            latency=(before.latency, after.latency),
        )

    def _why_it_stays(self, name: str) -> str:
        reason = self.reasons.get(name, "the choice of sizes left it as it is")
        return f"{reason}; its weights are fitted to its new inputs" if name in self.fitted else reason


def check_reachable(
    graph: Graph, stage: Compress, groups: Sequence[PrunableGroup], candidates: Sequence[Candidate]
) -> None:
    """Make sure that some choice is within the budget.

    Raises:
        RecipeError: the budget is below what can be reached.
    """
    unit, share = stage.budget
    costs = CompressionCosts(graph, groups, candidates, unit)
    total, least = costs.total(costs.nothing), costs.least()
    if least > share * total:
        whole = {
            "macs": f"the {round(total):,} multiplications",
            "parameters": f"the {round(total):,} parameters",
            "latency": f"the {milliseconds(total)} that all layers take in ONNX Runtime",
        }
        raise RecipeError(_out_of_reach(stage, least / total, whole[unit], groups, candidates))


def _with_losses(candidates: Sequence[Candidate], losses: Sequence[Sequence[float]]) -> list[Candidate]:
    """The candidates with losses in the place of errors."""
    return [
        dataclasses.replace(
            one, options=tuple(dataclasses.replace(o, error=it) for o, it in zip(one.options, found, strict=True))
        )
        for one, found in zip(candidates, losses, strict=True)
    ]


def _out_of_reach(
    stage: Compress,
    least: float,
    whole: str,
    groups: Sequence[PrunableGroup],
    candidates: Sequence[Candidate],
) -> str:
    """What to say if a budget is below what can be reached."""
    unit, share = stage.budget
    names = ", ".join(type(method).__name__ for method in stage.methods)
    stuck = []
    if any(one.options for one in candidates):
        stuck.append(
            f"{number_of(sum(not one.options for one in candidates), 'layer')} of {len(candidates)} cannot be cut"
        )
    if groups:
        stuck.append(
            f"{number_of(sum(not group.options for group in groups), 'group')} of {len(groups)} must keep all channels"
        )
    return (
        f"{unit}={share:g} cannot be reached: with {names}, and ranks and numbers of channels that are multiples of "
        f"{stage.multiple}, at least {math.ceil(1000 * least) / 1000:g} of {whole} is left; "
        f"{' and '.join(stuck) or f'none of the {len(candidates)} layers can be cut'}. Give a larger share, more "
        "methods, or a smaller multiple."
    )


def _expected(pruned: Sequence[tuple[PrunableGroup, PruningOption]], chains: Mapping[str, Option]) -> dict[str, float]:
    """The errors that were predicted for layers that read fewer channels, and for chains."""
    expected = {name: option.error for name, option in chains.items()}
    for group, option in pruned:
        for layer, error in zip(group.readers, option.errors, strict=True):
            expected[layer.name] = expected.get(layer.name, 0.0) + error
    return expected


def _methods(
    pruned: Sequence[tuple[PrunableGroup, PruningOption]], chains: Mapping[str, Option], layers: Mapping[str, Layer]
) -> dict[str, str]:
    """The names of the methods that changed a layer."""
    by_weight = {layer.weight: name for name, layer in layers.items()}
    methods: dict[str, list[str]] = {}
    for group, option in pruned:
        for member in group.group.members:
            if member.constant in by_weight:
                methods.setdefault(by_weight[member.constant], []).append(name_of_method(option.method))
    for name, chain in chains.items():
        methods.setdefault(name, []).append(name_of_method(chain.method))
    return {name: " + ".join(dict.fromkeys(methods[name])) for name in layers if name in methods}


def _reasons(groups: Sequence[PrunableGroup], candidates: Sequence[Candidate]) -> dict[str, str]:
    """Why layers could not be changed, by their names."""
    by_weight = {one.layer.weight: one.layer.name for one in candidates}
    reasons = {one.layer.name: [one.reason] for one in candidates if one.reason}
    for group in groups:
        for name in (*group.group.rows, *group.group.columns) if not group.options else ():
            if name in by_weight:
                reasons.setdefault(by_weight[name], []).append(f"of its channels, all stay: {group.reason}")
    could = {one.layer.name for one in candidates if one.options}
    return {name: "; ".join(dict.fromkeys(found)) for name, found in reasons.items() if name not in could}


def _to_fit(graph: Graph, layers: Sequence[Layer], changed: Collection[str], stage: Compress) -> list[str]:
    """The layers that change, and those after them that have one call and that the recipe does not keep."""
    by_node, names = {layer.node: layer for layer in layers}, []
    after: set[fx.Node] = set()
    for node in graph.operations.nodes:
        layer = by_node.get(node)
        if layer is not None and (
            layer.name in changed or (after & set(node.all_input_nodes) and _is_free(layer, stage))
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
    return len(weight.users) == 1 and not is_kept(layer, stage)


def _sums(
    graph: Graph, layers: Mapping[str, Layer], expected: Mapping[str, float], fitted: Collection[str]
) -> dict[str, float]:
    """For each layer that is fitted, the predicted errors of it and of all layers that its output depends on."""
    by_node = {layer.node: layer for layer in layers.values()}
    behind: dict[fx.Node, frozenset[str]] = {}
    for node in graph.operations.nodes:
        own = frozenset([by_node[node].name] if node in by_node and by_node[node].name in expected else ())
        behind[node] = own.union(*(behind[source] for source in node.all_input_nodes))
    sums: dict[str, float] = {}
    for name in fitted:
        addend = layers[name].addend  # the layer makes up for its error too, and so has a part of it
        others = behind[addend] if addend is not None else frozenset[str]()
        sums[name] = sum(expected[one] for one in behind[layers[name].node] | others)
    return sums


def _metrics_left(
    pruned: Sequence[tuple[PrunableGroup, PruningOption]], metrics: Mapping[str, Tensor], layers: Mapping[str, Layer]
) -> dict[str, Tensor]:
    """S of each layer, without the rows that go."""
    left, by_weight = dict(metrics), {layer.weight: name for name, layer in layers.items()}
    gone: dict[str, set[int]] = {}
    for group, option in pruned:
        channels = _others(group, option.kept)
        for member in group.group.members:
            name = by_weight.get(member.constant, "")
            if member.role == "rows" and name in metrics:
                gone.setdefault(name, set()).update(p for channel in channels for p in member.places[channel])
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
