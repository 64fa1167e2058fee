"""Run the stage `Quantize`: choose ranges and codes of weights, and ranges of activations; measure the errors.

The stage takes one pass over the samples for weights, two for weights and activations:

    weights only                        1. round the weights
    activations, adapt_rounding=False   1. round the weights; estimate ranges in the network with rounded weights
                                        2. quantize the activations, keep the codes of the weights, measure all errors
    activations, adapt_rounding=True    1. run the float network; estimate the ranges of its activations
                                        2. round the weights while the activations are quantized
    no data                             no pass: layers are rounded one by one, and no error is measured

`adapt_rounding=False` is what the paper does. If the ranges of activations come from batch-norm's statistics instead of
samples, they are chosen before the first pass, and `adapt_rounding=True` needs one pass only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.engine.activations import (
    ChosenQuantizers,
    check_without_data,
    choose_quantizers,
    empty_statistics,
    expected_values,
    tasks_of_activations,
)
from roundwise.engine.biases import fit_biases
from roundwise.engine.network import Network
from roundwise.engine.run import Run
from roundwise.engine.stream import Stream, StreamResult
from roundwise.engine.tasks import kept_float, tasks_of_layers
from roundwise.engine.unit import LayerTask, layer_report
from roundwise.events import PassStarted, Progress
from roundwise.graph.graph import Graph
from roundwise.methods.rounding import Given, Nearest
from roundwise.recipe.stages import Quantize
from roundwise.report import LayerReport, StageReport
from roundwise.wording import number_of

LARGER_BY = 1e-3
"""An error that exceeds that of nearest rounding by at most this share gets no note. With a smaller share, a difference
that comes from the order of a sum could cause one."""

WORSE_THAN_NEAREST = "its error, measured before the nonlinearity, is larger than with nearest rounding"
"""The note on a layer whose measured error is larger than with nearest rounding."""


def run_quantize(stage: Quantize, network: Network, run: Run) -> Network:
    """Quantize the weights of a network, and its activations if the stage asks for it.

    The reference network is the float network that the stage is given: its outputs are the targets, and errors are
    measured against them.

    Raises:
        ModelError: there is no layer to quantize, or weights or outputs of layers are not finite.
        RecipeError: the settings do not fit the network, or a method needs samples and there are none.
        MemoryBudgetError: the disk is full.
    """
    graph = network.graph
    tasks = tasks_of_layers(graph, stage)
    if run.has_data:
        outcome = _run_passes(graph, tasks, stage, run)
    else:
        outcome = _run_without_data(graph, tasks, stage, run.seed)
    result = outcome.result
    weights, notes = fit_biases(graph, result.weights, outcome.activations.quantizers)
    report = StageReport(
        stage="quantize",
        seconds=result.seconds,
        notes=(*result.notes, *outcome.activations.notes),
        output_error=None if math.isnan(result.output_error) else result.output_error,
        outputs=result.outputs,
        layers=tuple(_with_notes(layer, notes.get(layer.name, "")) for layer in result.reports),
        kept_float=tuple(kept_float(graph, result.weights)),
        activations=outcome.activations.reports,
    )
    return dataclasses.replace(
        network,
        weights=(*network.weights, *weights),
        quantizers={**network.quantizers, **outcome.activations.quantizers},
        reports=(*network.reports, report),
    )


def _with_notes(layer: LayerReport, note: str) -> LayerReport:
    """The layer's report with one more note, and a note if its error is larger than with nearest rounding."""
    worse = WORSE_THAN_NEAREST if layer.error > (1 + LARGER_BY) * layer.error_nearest else ""
    return dataclasses.replace(layer, note="; ".join(filter(None, (layer.note, worse, note))))


def nearest_error(graph: Graph, stage: Quantize, run: Run, samples: int) -> float:
    """The relative error of the outputs, with the settings of a stage but with all weights rounded to nearest.

    Args:
        graph: the network.
        stage: says which weights and activations are quantized, and how.
        run: with samples; it stays as it is.
        samples: how many of the last samples are used, or a few more if they fill a batch.

    Raises:
        ModelError, RecipeError: as `run_quantize`.
    """
    assert run.calibration is not None
    few = dataclasses.replace(
        run, calibration=(last := run.calibration.last(samples)), samples=last.samples, progress=lambda _: None
    )
    tasks = [dataclasses.replace(task, rounding=Nearest()) for task in tasks_of_layers(graph, stage)]
    return _run_passes(graph, tasks, stage, few).result.output_error


@final
@dataclass(frozen=True, eq=False)
class PassResult:
    """The result of all passes.

    Attributes:
        result: codes, reports and errors; the errors are measured with the quantized activations.
        activations: the quantizers of activations, with their reports.
    """

    result: StreamResult[QuantizedWeight, LayerReport]
    activations: ChosenQuantizers


def _run_passes(graph: Graph, tasks: Sequence[LayerTask], stage: Quantize, run: Run) -> PassResult:
    """Run the samples through the network as often as the stage needs.

    Raises:
        ModelError, MemoryBudgetError: as `Stream.run`.
    """
    batches, progress = run.take_batches(), run.progress
    activation_tasks = tasks_of_activations(graph, tasks, stage)

    def stream(tasks: Sequence[LayerTask], *, last: bool, **more: Any) -> Stream[QuantizedWeight, LayerReport]:
        made = Stream(graph, batches, run.samples, tasks, keeps_inputs=not last, seed=run.seed, store=run.store, **more)
        if last:
            batches.clear()  # the stream now has the only references, and can free each batch after use
        return made

    if not activation_tasks:
        return PassResult(stream(tasks, last=True, progress=progress).run(), ChosenQuantizers({}))
    expected, observers = expected_values(graph, activation_tasks), empty_statistics(activation_tasks)
    if not activation_tasks[0].settings.adapt_rounding:
        first = stream(tasks, last=False, observers=observers, progress=progress).run()
        chosen = choose_quantizers(activation_tasks, {**expected, **observers})
        return _with_rounded(first, stream, tasks, chosen, progress)
    before = None
    if observers:
        progress(PassStarted(f"estimating the ranges of {number_of(len(observers), 'activation')}"))
        before = stream((), last=False, observers=observers).run()
    chosen = choose_quantizers(activation_tasks, {**expected, **observers})
    result = stream(tasks, last=True, quantizers=chosen.quantizers, progress=progress).run()
    return PassResult(result if before is None else _with_seconds(result, before), chosen)


def _run_without_data(graph: Graph, tasks: Sequence[LayerTask], stage: Quantize, seed: int) -> PassResult:
    """Round the layers one by one without samples; no error is measured.

    Raises:
        RecipeError: a method needs samples, or the range of an activation cannot be estimated without samples.
    """
    for task in tasks:
        task.check_without_data()
    activation_tasks = tasks_of_activations(graph, tasks, stage)
    check_without_data(activation_tasks)
    chosen = choose_quantizers(activation_tasks, expected_values(graph, activation_tasks))
    weights, reports, seconds = [], [], {"ranges": 0.0, "rounding": 0.0}
    for task in tasks:
        (solved,) = task.solve(task.statistics(0, seed), seed)
        weights.append(solved.chosen)
        reports.append(layer_report(solved, math.nan, math.nan))
        seconds["ranges"] += solved.seconds_ranges
        seconds["rounding"] += solved.seconds_rounding
    return PassResult(StreamResult(weights, reports, (), seconds), chosen)


def _with_rounded(
    first: StreamResult[QuantizedWeight, LayerReport],
    stream: Callable[..., Stream[QuantizedWeight, LayerReport]],
    tasks: Sequence[LayerTask],
    chosen: ChosenQuantizers,
    progress: Progress,
) -> PassResult:
    """Run a second pass with quantized activations and the weights that the first pass has rounded."""
    progress(PassStarted(f"quantizing {number_of(len(chosen.quantizers), 'activation')}"))
    decided = [
        dataclasses.replace(
            task,
            rounding=Given(weight.codes, weight.grid, weight.bias_shift),
            correction=None,  # the first pass has corrected the bias: its shift is in `bias_shift`
        )
        for task, weight in zip(tasks, first.weights, strict=True)
    ]
    second = stream(decided, last=True, quantizers=chosen.quantizers).run()
    layers = [
        dataclasses.replace(new, seconds=old.seconds, note=old.note)
        for new, old in zip(second.reports, first.reports, strict=True)
    ]
    return PassResult(dataclasses.replace(_with_seconds(second, first), reports=layers), chosen)


def _with_seconds(
    result: StreamResult[QuantizedWeight, LayerReport], other: StreamResult[QuantizedWeight, LayerReport]
) -> StreamResult[QuantizedWeight, LayerReport]:
    """The result, with the time of another pass added to its own."""
    return dataclasses.replace(
        result, seconds={name: s + other.seconds.get(name, 0.0) for name, s in result.seconds.items()}
    )
