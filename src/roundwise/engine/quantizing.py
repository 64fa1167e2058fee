"""Run the stage `Quantize`: choose ranges and codes of weights, and ranges of activations; measure the errors."""

from __future__ import annotations

import dataclasses

from roundwise.engine.network import Network
from roundwise.engine.passes import run_passes, run_without_data
from roundwise.engine.run import Run
from roundwise.engine.tasks import kept_float, plan_layers
from roundwise.recipe.stages import Quantize
from roundwise.report import StageReport


def run_quantize(stage: Quantize, network: Network, run: Run) -> Network:
    """Quantize the weights of a network, and its activations if the stage asks for it.

    The reference network is the float network that the stage is given: its outputs are the targets, and errors are
    measured against them.

    Raises:
        CalibrationError: an activation is zero, or empty, for all samples.
        ModelError: there is no layer to quantize, or weights or activations are not finite.
        RecipeError: the settings do not fit the network, or a method needs samples and there are none.
        MemoryBudgetError: the disk is full.
    """
    graph = network.graph
    tasks = plan_layers(graph, stage)
    outcome = run_passes(graph, tasks, stage, run) if run.has_data else run_without_data(graph, tasks, stage, run.seed)
    result = outcome.result
    report = StageReport(
        stage="quantize",
        seconds=result.seconds,
        output_error=result.output_error if run.has_data else None,
        layers=tuple(result.reports),
        kept_float=tuple(kept_float(graph, result.weights)),
        activations=outcome.activations,
    )
    return dataclasses.replace(
        network,
        weights=(*network.weights, *result.weights),
        quantizers={**network.quantizers, **outcome.quantizers},
        reports=(*network.reports, report),
    )
