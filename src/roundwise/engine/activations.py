"""Choose which activations are quantized, and estimate their ranges. Activations are tensors between operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import fx

from roundwise.engine.unit import LayerTask
from roundwise.errors import RecipeError
from roundwise.graph.analysis.activations import find_activations, kind_of
from roundwise.graph.analysis.edges import edge_readers
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.analysis.moments import Known, propagate
from roundwise.graph.graph import Graph
from roundwise.methods.activations import ActivationBatchNorm
from roundwise.numerics.quantizer import Quantizer
from roundwise.recipe.settings import Activations
from roundwise.recipe.stages import Quantize
from roundwise.report import ActivationReport
from roundwise.statistics import ExpectedValues, ValueStatistic
from roundwise.wording import number_of

NAMED = 8
"""A note names at most 8 activations, and counts the others. With a larger number, notes are longer."""


@final
@dataclass(frozen=True, eq=False)
class ActivationTask:
    """Activations that share one range, and how to quantize them.

    Attributes:
        nodes: the operations or inputs that give the activations.
        settings: bits, range estimation and so on.
    """

    nodes: list[fx.Node]
    settings: Activations


ValueStatistics = dict[fx.Node, ValueStatistic]
"""The statistic of each activation, by the operation or input that gives the activation."""


def tasks_of_activations(graph: Graph, tasks: Sequence[LayerTask], stage: Quantize) -> list[ActivationTask]:
    """A task for each range of activations that the stage chooses, in the order in which the activations are computed.

    An override for a layer or for a kind of operation applies to the activations that the layer or operation reads.

    Raises:
        RecipeError: `adapt_rounding` is not the same for all activations.
    """
    if stage.activations is None and not stage.exceptions.quantizes_activations:
        return []
    layers = {call: task.layer for task in tasks for call in task.layer.calls}
    edges = set() if stage.edge_bits is None else edge_readers(graph, find_layers(graph))
    found = []
    for group in find_activations(graph, layers.keys()):
        names = [node.name for node in group.nodes] + [layers[r].name for r in group.readers if r in layers]
        kinds = [layers[r].map.operation if r in layers else kind_of(r) for r in group.readers]
        settings = stage.exceptions.activations(names, kinds, stage.activations)
        at_edge = not edges.isdisjoint(group.readers) and not stage.exceptions.names_activations(names)
        if settings is not None and stage.edge_bits is not None and at_edge:
            settings = replace(settings, bits=stage.edge_bits)
        if settings is not None:
            found.append(ActivationTask(group.nodes, settings))
    if len({task.settings.adapt_rounding for task in found}) > 1:
        raise RecipeError(
            f"adapt_rounding is True for some of the {len(found)} activations and False for others, but weights are "
            "rounded once, either for quantized or for float inputs. Give all Activations of the stage the same value."
        )
    return found


def overridable_names(graph: Graph) -> tuple[list[str], list[str]]:
    """The names of all activations, and the kinds of all operations: an override may use each of them."""
    nodes = [node for node in graph.operations.nodes if node.op in ("placeholder", "call_function")]
    return [node.name for node in nodes], [kind_of(node) for node in nodes if node.op == "call_function"]


def empty_statistics(tasks: Sequence[ActivationTask]) -> ValueStatistics:
    """An empty statistic for each activation whose range is estimated from samples."""
    return {
        node: task.settings.ranges.needs()
        for task in tasks
        if task.settings.ranges.needs.from_samples
        for node in task.nodes
    }


def expected_values(graph: Graph, tasks: Sequence[ActivationTask]) -> ValueStatistics:
    """The values expected from batch-norm's statistics, for each activation whose range needs no samples.

    Raises:
        RecipeError: batch-norm's statistics say nothing about an activation; names it.
    """
    without = [task for task in tasks if not task.settings.ranges.needs.from_samples]
    known: Mapping[fx.Node, Known] = propagate(graph) if without else {}
    return {node: _expected(node, task.settings, known) for task in without for node in task.nodes}


def check_without_data(tasks: Sequence[ActivationTask]) -> None:
    """Raise if a range is estimated from samples.

    Raises:
        RecipeError: names the method.
    """
    for task in tasks:
        kind = task.settings.ranges.needs
        if kind.from_samples:
            raise RecipeError(
                f"activations: {type(task.settings.ranges).__name__} needs samples ({kind.__name__}), but there is no "
                "data. Give calibration samples, choose ranges=ActivationBatchNorm(), or leave activations in float."
            )


@final
@dataclass(frozen=True, eq=False)
class ChosenQuantizers:
    """The quantizers of activations.

    Attributes:
        quantizers: by the operation or input that gives the activation; of those that are quantized.
        reports: an entry for each of them.
        notes: which activations stay in float, with the reasons.
    """

    quantizers: dict[fx.Node, Quantizer]
    reports: tuple[ActivationReport, ...] = ()
    notes: tuple[str, ...] = ()


def choose_quantizers(
    tasks: Sequence[ActivationTask], statistics: Mapping[fx.Node, ValueStatistic]
) -> ChosenQuantizers:
    """A quantizer for each activation. Activations of one task share one quantizer, which covers all their ranges.

    Activations without values, or with values that no grid can hold, stay in float.
    """
    quantizers: dict[fx.Node, Quantizer] = {}
    reports, in_float = [], dict[str, list[str]]()
    for task in tasks:
        quantizer, expected, reason = _quantizer(task, statistics)
        if quantizer is None:
            in_float.setdefault(reason, []).extend(node.name for node in task.nodes)
            continue
        for node in task.nodes:
            quantizers[node] = quantizer
            seen = statistics[node]
            low, high = (seen.low, seen.high) if seen.lows else expected.get(node, (0.0, 0.0))
            reports.append(
                ActivationReport(
                    name=node.name,
                    bits=task.settings.bits,
                    symmetric=task.settings.codebook.symmetric,
                    scale=quantizer.scale,
                    zero_point=quantizer.zero_point,
                    low=low,
                    high=high,
                    shared_with=tuple(other.name for other in task.nodes if other is not node),
                )
            )
    notes = tuple(f"{_named(names)} left in float: {reason}" for reason, names in in_float.items())
    return ChosenQuantizers(quantizers, tuple(reports), notes)


Limits = dict[fx.Node, tuple[float, float]]
"""The smallest and the largest value to cover, by the operation or input that gives an activation."""


def _quantizer(
    task: ActivationTask, statistics: Mapping[fx.Node, ValueStatistic]
) -> tuple[Quantizer | None, Limits, str]:
    """The quantizer of a task and the limits of its activations; without a quantizer, the reason."""
    wanted, seen = task.settings, {node: statistics[node] for node in task.nodes}
    if not all(values.finite for values in seen.values()):
        return None, {}, "values that are NaN or infinite, for some calibration samples"
    if not any(values.lows or not values.from_samples for values in seen.values()):
        return None, {}, "empty for all calibration samples"
    limits = {
        node: wanted.ranges.limits(values, wanted.codebook)
        for node, values in seen.items()
        if not values.from_samples or (values.lows and (values.low, values.high) != (0.0, 0.0))
    }
    if not all(map(math.isfinite, (end for ends in limits.values() for end in ends))):
        return None, {}, "no finite range follows from the statistics of batch-norms"
    low, high = (
        min((low for low, _ in limits.values()), default=0.0),
        max((it for _, it in limits.values()), default=0.0),
    )
    quantizer = Quantizer.spanning(low, high, wanted.codebook)
    if max(abs(low), abs(high)) < quantizer.scale / 2:
        return None, {}, "0 for all calibration samples, or too small for a scale in float32"
    largest = max((values.largest_ordinary for values in seen.values() if values.lows), default=math.inf)
    if 0 < largest < quantizer.scale / 2:
        return (
            None,
            {},
            (
                f"some values are huge, as in attention masks, and a grid of {wanted.bits} bits would round all others "
                "to 0"
            ),
        )
    return quantizer, limits, ""


def _named(names: Sequence[str]) -> str:
    """The names of activations, of many the first."""
    shown = ", ".join(f"'{name}'" for name in names[:NAMED])
    more = f" and {number_of(len(names) - NAMED, 'other')}" if len(names) > NAMED else ""
    return f"{'activations' if len(names) > 1 else 'activation'} {shown}{more}"


def _expected(node: fx.Node, settings: Activations, known: Mapping[fx.Node, Known]) -> ExpectedValues:
    ranges = settings.ranges
    if node.op == "placeholder" and isinstance(ranges, ActivationBatchNorm) and ranges.input_low is None:
        raise RecipeError(
            f"activations: the range of the network's input '{node.name}' is not known, since no batch-norm comes "
            "before it. Give its smallest and largest number: ActivationBatchNorm(input_low=…, input_high=…), on the "
            "command line --mean and --std, or --set activations.ranges.input_low=… and input_high. For images they "
            "are (0 − mean)/std and (1 − mean)/std."
        )
    if node.op != "placeholder" and node not in known:
        raise RecipeError(
            f"activations: the range of '{node.name}' ({node.target}) is not known, since it does not follow from the "
            "statistics of a batch-norm. Leave activations in float, keep the layers that read it in float "
            "(overrides), or give calibration samples and choose ranges that use them, such as ActivationMSE()."
        )
    return ExpectedValues(known[node].spread if node in known else None)
