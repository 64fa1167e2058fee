"""Run the stage `Compress` with methods that remove channels.

    1. Measure: for each group of channels, which of them stay for each count, and the predicted error
       (`engine/prunable.py`).
    2. Choose: a count for each group, within the budget (`engine/pruning_costs.py`).
    3. Cut: the other channels go, from all layers that give or read them (`graph/transforms/prune.py`).
    4. Refit: one pass over two streams, the original network and the one that is cut. In the order in which they run,
       the layers that read fewer channels now, and all layers after them, are fitted to the original's outputs, so each
       makes up for errors of those before it. Where the output of such a layer is added to another branch, it makes up
       for that one's error too.

Without samples, the layers keep the weights of the channels that stay.
"""

from __future__ import annotations

import dataclasses
import time

from roundwise.engine.network import Network
from roundwise.engine.prunable import find_prunable
from roundwise.engine.pruning_fit import FitTask
from roundwise.engine.pruning_plan import PruningPlan
from roundwise.engine.refitting import FloatWeight
from roundwise.engine.run import Run
from roundwise.engine.stream import Stream
from roundwise.events import PassStarted
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.edit import set_constant
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.prune import prune
from roundwise.graph.unit import Unit
from roundwise.recipe.compress import Compress
from roundwise.report import OutputReport, StageReport, worst_error
from roundwise.report_compression import CompressionReport
from roundwise.wording import number_of


def run_pruning(stage: Compress, network: Network, run: Run) -> Network:
    """Remove channels of a network.

    Raises:
        ModelError: there are no layers, or outputs of layers are not finite.
        RecipeError: the budget cannot be met, or a method's answer does not fit.
        MemoryBudgetError: the disk is full.
    """
    start = time.perf_counter()
    groups, metrics = find_prunable(network.graph, stage, run)
    seconds = {"measuring": time.perf_counter() - start}
    plan = PruningPlan.of(network.graph, stage, groups, metrics)
    original = network.original or network.graph
    cut = prune(network.graph, plan.removed, plan.fitted, original, network.counterparts)
    reports: dict[str, CompressionReport] = {}
    outputs: tuple[OutputReport, ...] = ()
    notes: tuple[str, ...] = ()
    if run.has_data:
        tasks = [
            FitTask(Unit.of_layer(cut.graph, layer), plan)
            for layer in find_layers(cut.graph)
            if layer.name in plan.fitted
        ]
        if tasks:
            run.progress(PassStarted(f"fitting {number_of(len(tasks), 'layer')}"))
        result = Stream(
            cut.graph,
            run.take_batches(),
            run.samples,
            tasks,
            reference=cut.reference,
            counterparts=cut.counterparts,
            keeps_inputs=not run.last,
            seed=run.seed,
            store=run.store,
            progress=run.progress,
        ).run()
        for new in result.weights:
            _store(cut.graph, new)
        reports = {report.name: report for report in result.reports}
        outputs, notes = result.outputs, result.notes
        seconds |= result.seconds
    entries = tuple(reports.get(name) or plan.report(name) for name in plan.before)
    report = StageReport(
        "compress",
        seconds,
        notes,
        output_error=worst_error(outputs) if outputs else None,
        outputs=outputs,
        compressed=entries,
    )
    return dataclasses.replace(
        network,
        graph=cut.graph,
        original=cut.reference,
        counterparts=cut.counterparts,
        reports=(*network.reports, report),
    )


def _store(graph: Graph, new: FloatWeight) -> None:
    """Give a layer a new weight and bias."""
    dtype = graph.constants[new.layer.weight].dtype
    set_constant(graph, new.layer.weight, new.weight(dtype).contiguous())
    assert new.layer.own_bias is not None
    assert new.bias is not None
    set_constant(graph, new.layer.own_bias, new.bias)
