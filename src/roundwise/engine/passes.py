"""The passes over the samples that a recipe asks for: one for weights alone, two where activations are quantized too.

Without data there is none: layers are rounded one by one, and nothing is measured. Where ranges of activations are not
read off samples either, they are chosen before the first pass.

With `adapt_rounding` the first pass runs the float network alone and reads the ranges of its activations; in the second
they are quantized, and the rounding of weights adapts to that. Without, as in the paper, weights are rounded in the
first pass, where activations stay in float while their ranges are read off the network with rounded weights; the second
quantizes them and measures what the network computes in the end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import fx

from roundwise.engine.run import Run
from roundwise.engine.stream import Stream, StreamResult
from roundwise.engine.unit import LayerTask, layer_report, solve_layer
from roundwise.errors import CalibrationError, ModelError, RecipeError
from roundwise.events import PassStarted, Progress
from roundwise.graph.analysis.activations import find_activations
from roundwise.graph.analysis.moments import propagate
from roundwise.graph.graph import Graph
from roundwise.methods.activations import ActivationBatchNorm
from roundwise.methods.rounding import Given
from roundwise.numerics.quantizer import Quantizer
from roundwise.recipe.settings import Activations
from roundwise.recipe.stages import Quantize
from roundwise.report import ActivationReport
from roundwise.statistics import ExpectedValues, ValueStatistic
from roundwise.wording import number_of


@final
@dataclass(frozen=True, eq=False)
class Passed:
    """What came out of all passes.

    Attributes:
        result: codes, reports and errors, with activations quantized where they are.
        quantizers: of activations, by the operations and inputs that give them.
        activations: the report on these.
    """

    result: StreamResult
    quantizers: Mapping[fx.Node, Quantizer]
    activations: tuple[ActivationReport, ...]


def run_passes(graph: Graph, tasks: Sequence[LayerTask], stage: Quantize, run: Run) -> Passed:
    """Stream the samples through the network as often as the stage needs.

    Raises:
        CalibrationError: an activation is zero, or there is none, for all samples.
        ModelError, MemoryBudgetError: as `Stream.run`.
    """
    batches, progress, wanted = run.take_batches(), run.progress, stage.activations

    def stream(tasks: Sequence[LayerTask], *, last: bool, **more: Any) -> Stream:
        made = Stream(graph, batches, run.samples, tasks, keeps_inputs=not last, seed=run.seed, store=run.store, **more)
        if last:
            batches.clear()  # so that the stream alone decides how long they stay
        return made

    if wanted is None:
        return Passed(stream(tasks, last=True, progress=progress).run(), {}, ())
    groups = find_activations(graph, {call for task in tasks for call in task.layer.calls})
    if not wanted.ranges.needs.from_samples:
        quantizers, reports = _choose(groups, _expected(graph, groups, wanted), wanted)
        if wanted.adapt_rounding:
            return Passed(stream(tasks, last=True, quantizers=quantizers, progress=progress).run(), quantizers, reports)
        first = stream(tasks, last=False, progress=progress).run()
        return _with_rounded(first, stream, tasks, quantizers, reports, progress)
    watched: dict[fx.Node, ValueStatistic] = {node: wanted.ranges.needs() for group in groups for node in group}
    if wanted.adapt_rounding:
        progress(PassStarted(f"reading the ranges of {number_of(len(watched), 'activation')}"))
        first = stream((), last=False, watched=watched).run()
        quantizers, reports = _choose(groups, watched, wanted)
        second = stream(tasks, last=True, quantizers=quantizers, progress=progress).run()
        return Passed(_with_seconds(second, first), quantizers, reports)
    first = stream(tasks, last=False, watched=watched, progress=progress).run()
    quantizers, reports = _choose(groups, watched, wanted)
    return _with_rounded(first, stream, tasks, quantizers, reports, progress)


def run_without_data(graph: Graph, tasks: Sequence[LayerTask], stage: Quantize, seed: int) -> Passed:
    """Round the layers one by one, from what is known of them without any sample; no error is measured.

    Raises:
        RecipeError: a method learns from samples, or a range cannot be had without.
    """
    for task in tasks:
        task.check_without_data()
    wanted = stage.activations
    quantizers: dict[fx.Node, Quantizer] = {}
    activations: tuple[ActivationReport, ...] = ()
    if wanted is not None:
        kind = wanted.ranges.needs
        if kind.from_samples:
            raise RecipeError(
                f"activations: {type(wanted.ranges).__name__} learns ranges from samples ({kind.__name__}), and there "
                "is no data. Give calibration samples, take ranges=ActivationBatchNorm(), or leave them in float."
            )
        groups = find_activations(graph, {call for task in tasks for call in task.layer.calls})
        quantizers, activations = _choose(groups, _expected(graph, groups, wanted), wanted)
    weights, reports, seconds = [], [], {"ranges": 0.0, "rounding": 0.0}
    for task in tasks:
        matrix = task.layer.map.to_matrix(graph.constants[task.layer.weight]).float()
        solved = solve_layer(graph, task, matrix, task.statistics(0, seed), seed)
        weights.append(solved.chosen)
        reports.append(layer_report(task, matrix, solved, math.nan, math.nan))
        seconds["ranges"] += solved.seconds_ranges
        seconds["rounding"] += solved.seconds_rounding
    return Passed(StreamResult(weights, reports, math.nan, seconds), quantizers, activations)


def _with_rounded(
    first: StreamResult,
    stream: Callable[..., Stream],
    tasks: Sequence[LayerTask],
    quantizers: Mapping[fx.Node, Quantizer],
    reports: tuple[ActivationReport, ...],
    progress: Progress,
) -> Passed:
    """A second pass, with activations quantized and weights as the first rounded them."""
    progress(PassStarted(f"quantizing {number_of(len(quantizers), 'activation')}"))
    decided = [
        dataclasses.replace(
            task,
            rounding=Given(weight.codes, weight.grid, weight.bias_shift),
            correction=None,  # its shift is among what was decided
        )
        for task, weight in zip(tasks, first.weights, strict=True)
    ]
    second = stream(decided, last=True, quantizers=quantizers).run()
    layers = [
        dataclasses.replace(new, seconds=old.seconds, note=old.note)
        for new, old in zip(second.reports, first.reports, strict=True)
    ]
    return Passed(dataclasses.replace(_with_seconds(second, first), reports=layers), quantizers, reports)


def _choose(
    groups: Sequence[Sequence[fx.Node]], watched: Mapping[fx.Node, ValueStatistic], wanted: Activations
) -> tuple[dict[fx.Node, Quantizer], tuple[ActivationReport, ...]]:
    """A quantizer for each tensor, the same for all of a group: it covers the ranges of all of them."""
    quantizers: dict[fx.Node, Quantizer] = {}
    reports = []
    for group in groups:
        limits = []
        for node in group:
            if watched[node].from_samples:
                _check_values(node, watched[node])
            limits.append(wanted.ranges.limits(watched[node], wanted.codebook))
        low, high = (end(values) for end, values in zip((min, max), zip(*limits, strict=True), strict=True))
        quantizer = Quantizer.spanning(low, high, wanted.codebook)
        for node, expected in zip(group, limits, strict=True):
            quantizers[node] = quantizer
            seen = watched[node]
            reports.append(
                ActivationReport(
                    name=node.name,
                    bits=wanted.bits,
                    symmetric=wanted.symmetric,
                    scale=quantizer.scale,
                    zero_point=quantizer.zero_point,
                    low=seen.low if seen.from_samples else expected[0],
                    high=seen.high if seen.from_samples else expected[1],
                    shared_with=tuple(other.name for other in group if other is not node),
                )
            )
    return quantizers, tuple(reports)


def _expected(graph: Graph, groups: Sequence[Sequence[fx.Node]], wanted: Activations) -> dict[fx.Node, ValueStatistic]:
    """What batch-norm lets expect of each tensor.

    Raises:
        RecipeError: nothing, for one of them; names it.
    """
    known, ranges = propagate(graph), wanted.ranges
    for node in (node for group in groups for node in group):
        if node.op == "placeholder" and isinstance(ranges, ActivationBatchNorm) and ranges.input_low is None:
            raise RecipeError(
                f"activations: nothing tells the range of the network's input '{node.name}'. Give its smallest and "
                "largest number: ActivationBatchNorm(input_low=…, input_high=…), on the command line --mean and --std, "
                "or --set activations.ranges.input_low=… and input_high. For images they are (0 − mean)/std and "
                "(1 − mean)/std."
            )
        if node.op != "placeholder" and node not in known:
            raise RecipeError(
                f"activations: nothing tells the range of '{node.name}' ({node.target}): batch-norm's statistics do "
                "not reach it. Leave activations in float, keep the layers that read it in float (overrides), or give "
                "calibration samples and take ranges that are read off them, such as ActivationMSE()."
            )
    return {node: ExpectedValues(known[node].spread if node in known else None) for group in groups for node in group}


def _check_values(node: fx.Node, values: ValueStatistic) -> None:
    """Raise unless a range can be read off the values."""
    if not values.lows:
        raise CalibrationError(
            f"'{node.name}' holds no numbers for any calibration sample: {list(node.meta['val'].shape)}. A range "
            "cannot be read off them; give inputs of a size at which it holds some."
        )
    if not (math.isfinite(values.low) and math.isfinite(values.high)):
        raise ModelError(
            f"'{node.name}' has values from {values.low:g} to {values.high:g} for the calibration samples, which no "
            "range covers. Check the samples' preprocessing; where it must be so, leave activations in float."
        )
    if values.low == values.high == 0:
        raise CalibrationError(
            f"'{node.name}' is 0 everywhere, for all calibration samples: a range cannot be read off it. Give samples "
            "like those that the network will see. If it is 0 for all of them, that part of the network is dead: take "
            "it out, or leave activations in float."
        )


def _with_seconds(result: StreamResult, other: StreamResult) -> StreamResult:
    """With the time that another pass took added."""
    return dataclasses.replace(result, seconds={name: s + other.seconds[name] for name, s in result.seconds.items()})
