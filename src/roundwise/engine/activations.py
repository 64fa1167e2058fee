"""Choose which activations are quantized, and estimate their ranges. Activations are tensors between operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from torch import fx

from roundwise.engine.unit import LayerTask
from roundwise.errors import CalibrationError, ModelError, RecipeError
from roundwise.graph.analysis.activations import find_activations, kind_of
from roundwise.graph.analysis.moments import Known, propagate
from roundwise.graph.graph import Graph
from roundwise.methods.activations import ActivationBatchNorm
from roundwise.numerics.quantizer import Quantizer
from roundwise.recipe.settings import Activations
from roundwise.recipe.stages import Quantize
from roundwise.report import ActivationReport
from roundwise.statistics import ExpectedValues, ValueStatistic


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


def plan_activations(graph: Graph, tasks: Sequence[LayerTask], stage: Quantize) -> list[ActivationTask]:
    """The activations that the stage quantizes, in the order in which they are computed.

    An override for a layer or for a kind of operation applies to the activations that the layer or operation reads.

    Raises:
        RecipeError: `adapt_rounding` is not the same for all activations.
    """
    if stage.activations is None and not stage.exceptions.quantizes_activations:
        return []
    layers = {call: task.layer for task in tasks for call in task.layer.calls}
    planned = []
    for group in find_activations(graph, layers.keys()):
        names = [node.name for node in group.nodes] + [layers[r].name for r in group.readers if r in layers]
        kinds = [layers[r].map.operation if r in layers else kind_of(r) for r in group.readers]
        settings = stage.exceptions.activations(names, kinds, stage.activations)
        if settings is not None:
            planned.append(ActivationTask(group.nodes, settings))
    if len({task.settings.adapt_rounding for task in planned}) > 1:
        raise RecipeError(
            f"adapt_rounding is True for some of the {len(planned)} activations and False for others, but weights are "
            "rounded once, either for quantized or for float inputs. Give all Activations of the stage the same value."
        )
    return planned


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


def choose_quantizers(
    tasks: Sequence[ActivationTask], statistics: Mapping[fx.Node, ValueStatistic]
) -> tuple[dict[fx.Node, Quantizer], tuple[ActivationReport, ...]]:
    """A quantizer for each activation. Activations of one task share one quantizer, which covers all their ranges.

    Raises:
        CalibrationError, ModelError: no range can be estimated from the values of an activation.
    """
    quantizers: dict[fx.Node, Quantizer] = {}
    reports = []
    for task in tasks:
        wanted, limits = task.settings, []
        for node in task.nodes:
            if statistics[node].from_samples:
                _check_values(node, statistics[node])
            limits.append(wanted.ranges.limits(statistics[node], wanted.codebook))
        low, high = (end(values) for end, values in zip((min, max), zip(*limits, strict=True), strict=True))
        quantizer = Quantizer.spanning(low, high, wanted.codebook)
        for node, expected in zip(task.nodes, limits, strict=True):
            quantizers[node] = quantizer
            seen = statistics[node]
            reports.append(
                ActivationReport(
                    name=node.name,
                    bits=wanted.bits,
                    symmetric=wanted.symmetric,
                    scale=quantizer.scale,
                    zero_point=quantizer.zero_point,
                    low=seen.low if seen.from_samples else expected[0],
                    high=seen.high if seen.from_samples else expected[1],
                    shared_with=tuple(other.name for other in task.nodes if other is not node),
                )
            )
    return quantizers, tuple(reports)


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


def _check_values(node: fx.Node, values: ValueStatistic) -> None:
    """Raise unless a range can be estimated from the values."""
    if not values.lows:
        raise CalibrationError(
            f"'{node.name}' is empty for all calibration samples: its shape is {list(node.meta['val'].shape)}. So its "
            "range cannot be estimated; give inputs of a size for which it is not empty."
        )
    if not (math.isfinite(values.low) and math.isfinite(values.high)):
        raise ModelError(
            f"'{node.name}' has values from {values.low:g} to {values.high:g} for the calibration samples, and no grid "
            "covers this range. Check the samples' preprocessing; if these values are right, leave activations in "
            "float."
        )
    if values.low == values.high == 0:
        raise CalibrationError(
            f"'{node.name}' is 0 everywhere, for all calibration samples, so its range cannot be estimated. Give "
            "samples like those that the network will see in use. If it is always 0, this part of the network has no "
            "effect: remove it, or leave activations in float."
        )
