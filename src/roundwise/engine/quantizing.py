"""The stage `Quantize`: ranges and codes of weights, ranges of activations, in as many passes as that takes."""

from __future__ import annotations

import dataclasses

from roundwise.engine.network import Network
from roundwise.engine.passes import run_passes, run_without_data
from roundwise.engine.planning import kept_float, plan_layers
from roundwise.engine.run import Run
from roundwise.recipe.stages import Quantize
from roundwise.report import StageReport


def run_quantize(stage: Quantize, network: Network, run: Run) -> Network:
    """Quantize the layers of a network, and its activations where the stage asks for it.

    The float network that the stage is given is the reference: targets are its outputs, errors are measured against it.

    Raises:
        CalibrationError: an activation is zero, or there is none, for all samples.
        ModelError: no layer to quantize, weights or activations that are not finite.
        RecipeError: the settings do not fit the network, or need samples where there are none.
        MemoryBudgetError: the disk is full.
    """
    graph = network.graph
    tasks = plan_layers(graph, stage)
    passed = run_passes(graph, tasks, stage, run) if run.measures else run_without_data(graph, tasks, stage, run.seed)
    result = passed.result
    report = StageReport(
        stage="quantize",
        seconds=result.seconds,
        output_error=result.output_error if run.measures else None,
        layers=tuple(result.reports),
        kept_float=tuple(kept_float(graph, result.weights)),
        activations=passed.activations,
    )
    return dataclasses.replace(
        network,
        weights=(*network.weights, *result.weights),
        quantizers={**network.quantizers, **passed.quantizers},
        reports=(*network.reports, report),
    )
