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

from roundwise.engine.activations import (
    check_without_data,
    choose_quantizers,
    expected_values,
    plan_activations,
    to_watch,
)
from roundwise.engine.run import Run
from roundwise.engine.stream import Stream, StreamResult
from roundwise.engine.unit import LayerTask, layer_report
from roundwise.events import PassStarted, Progress
from roundwise.graph.graph import Graph
from roundwise.methods.rounding import Given
from roundwise.numerics.quantizer import Quantizer
from roundwise.recipe.stages import Quantize
from roundwise.report import ActivationReport
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
    batches, progress = run.take_batches(), run.progress
    planned = plan_activations(graph, tasks, stage)

    def stream(tasks: Sequence[LayerTask], *, last: bool, **more: Any) -> Stream:
        made = Stream(graph, batches, run.samples, tasks, keeps_inputs=not last, seed=run.seed, store=run.store, **more)
        if last:
            batches.clear()  # so that the stream alone decides how long they stay
        return made

    if not planned:
        return Passed(stream(tasks, last=True, progress=progress).run(), {}, ())
    expected, watched = expected_values(graph, planned), to_watch(planned)
    if not planned[0].settings.adapt_rounding:
        first = stream(tasks, last=False, watched=watched, progress=progress).run()
        quantizers, reports = choose_quantizers(planned, {**expected, **watched})
        return _with_rounded(first, stream, tasks, quantizers, reports, progress)
    before = None
    if watched:
        progress(PassStarted(f"reading the ranges of {number_of(len(watched), 'activation')}"))
        before = stream((), last=False, watched=watched).run()
    quantizers, reports = choose_quantizers(planned, {**expected, **watched})
    result = stream(tasks, last=True, quantizers=quantizers, progress=progress).run()
    return Passed(result if before is None else _with_seconds(result, before), quantizers, reports)


def run_without_data(graph: Graph, tasks: Sequence[LayerTask], stage: Quantize, seed: int) -> Passed:
    """Round the layers one by one, from what is known of them without any sample; no error is measured.

    Raises:
        RecipeError: a method learns from samples, or a range cannot be had without.
    """
    for task in tasks:
        task.check_without_data()
    planned = plan_activations(graph, tasks, stage)
    check_without_data(planned)
    quantizers, activations = choose_quantizers(planned, expected_values(graph, planned))
    weights, reports, seconds = [], [], {"ranges": 0.0, "rounding": 0.0}
    for task in tasks:
        (solved,) = task.solve(task.statistics(0, seed), seed)
        weights.append(solved.chosen)
        reports.append(layer_report(solved, math.nan, math.nan))
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


def _with_seconds(result: StreamResult, other: StreamResult) -> StreamResult:
    """With the time that another pass took added."""
    return dataclasses.replace(result, seconds={name: s + other.seconds[name] for name, s in result.seconds.items()})
