"""Run the stage `Compress`: make a network smaller within a budget.

    1. Measure: for each layer what it could be replaced by (`engine/candidates.py`), for each group of channels which
       could go (`engine/prunable.py`), and the predicted error of each size.
    2. Choose: sizes for all of them, within the budget (`engine/compression_costs.py`). Where that is a latency, layers
       and what could replace them are timed (`engine/latencies.py`). Where the choice evaluates,
       measure the caller's metric first, with one layer cut at a time (`engine/scoring.py`).
    3. Cut: channels go from all layers that give or read them (`graph/transforms/prune.py`); then each chosen layer
       becomes a chain of layers (`graph/transforms/factorize.py`), with factors of its weights alone.
    4. Refit: one pass over two streams, the original network and the one that is cut. In the order in which they run,
       chains, layers that read fewer channels, and all layers after these are fitted to the original's outputs, so each
       makes up for errors of those before it. Where the output of such a layer is added to another branch, it makes up
       for that one's error too.

Without samples, the errors are those of the weights; channels that stay keep their weights, and chains approximate
them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import final

from roundwise.engine.candidates import Candidate, Candidates, Cost, layers_to_compress, white_problem
from roundwise.engine.compression_plan import CompressionPlan, check_reachable
from roundwise.engine.latencies import Latencies
from roundwise.engine.measuring import matrix_of, measure
from roundwise.engine.network import Network
from roundwise.engine.prunable import PrunableGroups
from roundwise.engine.pruning_fit import FitTask
from roundwise.engine.refitting import FloatWeight, RefitTask, parts_of
from roundwise.engine.run import Run
from roundwise.engine.scoring import evaluated, losses_of, score
from roundwise.engine.stream import Stream
from roundwise.events import PassStarted
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.edit import set_constant
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.factorize import FactorizedGraph, Part, factorize
from roundwise.graph.transforms.prune import prune
from roundwise.graph.unit import Unit
from roundwise.recipe.compress import Compress
from roundwise.report import OutputReport, StageReport, worst_error
from roundwise.report_compression import CompressionReport
from roundwise.wording import number_of

ATTEMPTS = 4
"""How often sizes are chosen for a budget of latency. The time of a layer with fewer channels is predicted, then
measured; where the layers take longer than predicted, the next choice has a smaller budget."""


def run_compress(stage: Compress, network: Network, run: Run) -> Network:
    """Compress a network; where the caller gave a metric, the report says what it is before and after.

    Raises:
        InferenceError: the budget is a latency, and ONNX Runtime is not installed or cannot run a layer.
        ModelError: there are no layers, or weights or outputs of layers are not finite.
        RecipeError: the budget cannot be met, a method's answer does not fit, or the metric fails.
        MemoryBudgetError: the disk is full.
    """
    before = score(network, run, "the network before compression") if run.metric is not None else math.nan
    small = _compressed(stage, network, run, before)
    if run.metric is None:
        return small
    after = score(small, run, "the compressed network")
    report = small.reports[-1]
    notes = (*report.notes, f"the metric is {before:.4g} before and {after:.4g} after compression")
    report = dataclasses.replace(report, notes=notes)
    return dataclasses.replace(small, reports=(*small.reports[:-1], report))


def _compressed(stage: Compress, network: Network, run: Run, score_before: float) -> Network:
    """The network with fewer channels, and with chains in the place of layers."""
    start = time.perf_counter()
    layers = layers_to_compress(network.graph, stage)
    latencies = Latencies()
    if stage.latency is not None:
        run.progress(
            PassStarted(f"timing {number_of(len(layers), 'layer')} in ONNX Runtime, and what each could become")
        )
    candidates = Candidates(network.graph, layers, stage, latencies)
    groups = PrunableGroups(network.graph, layers, stage)
    metrics = measure(network.graph, (candidates, groups), run)
    offered, losses = candidates.all, None
    check_reachable(network.graph, stage, groups.all, offered)
    if stage.choice.evaluates:
        offered = evaluated(network.graph, offered, stage)
        check_reachable(network.graph, stage, groups.all, offered)
        losses = losses_of(offered, network, run, score_before)
    seconds = {"measuring": time.perf_counter() - start}
    plan = CompressionPlan.of(network.graph, stage, groups.all, offered, metrics, losses)
    cut, notes, aim = _cut(network, plan, run), tuple[str, ...](), 1.0
    for attempt in range(ATTEMPTS if stage.latency is not None else 0):
        assert stage.latency is not None
        plan = dataclasses.replace(plan, after=_timed(cut, plan, latencies))
        share = plan.latency_left
        notes = (f"layers take {share:.3f} of the time that they took before, above latency={stage.latency:g}",)
        if share <= stage.latency:
            notes = ()
            break
        if attempt < ATTEMPTS - 1:
            aim *= stage.latency / share
            plan = CompressionPlan.of(network.graph, stage, groups.all, offered, metrics, losses, aim)
            cut = _cut(network, plan, run)
    reports: dict[str, CompressionReport] = {}
    outputs: tuple[OutputReport, ...] = ()
    if run.has_data:
        tasks = _tasks(cut, plan)
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
        outputs, notes = result.outputs, (*notes, *result.notes)
        seconds |= result.seconds
    report = StageReport(
        "compress",
        seconds,
        notes,
        output_error=worst_error(outputs) if outputs else None,
        outputs=outputs,
        compressed=tuple(reports.get(name) or plan.report(name) for name in plan.layers),
    )
    return dataclasses.replace(
        network,
        graph=cut.graph,
        original=cut.reference,
        counterparts=cut.counterparts,
        reports=(*network.reports, report),
    )


@final
@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """The network with fewer channels and with chains.

    Attributes:
        graph: the network.
        reference: the original, changed so that the two can be compared.
        counterparts: for operations of `graph`, those of `reference`.
        chains: the layers that became chains, as they were before that.
        factorized: the chains.
    """

    graph: Graph
    reference: Graph
    counterparts: dict[str, str]
    chains: dict[str, Candidate]
    factorized: FactorizedGraph


def _cut(network: Network, plan: CompressionPlan, run: Run) -> _Cut:
    """Remove channels, and replace layers by chains with factors of their weights alone."""
    # Only layers that get new weights need a bias of their own, and only with samples do layers get new weights.
    fitted = plan.fitted if run.has_data else []
    pruned = prune(network.graph, plan.removed, fitted, network.original or network.graph, network.counterparts)
    chains = _chains(pruned.graph, plan)
    factorized = factorize(pruned.graph, {name: _parts(pruned.graph, plan, one) for name, one in chains.items()})
    counterparts = _through(factorized.counterparts, pruned.counterparts)
    return _Cut(factorized.graph, pruned.reference, counterparts, chains, factorized)


def _timed(cut: _Cut, plan: CompressionPlan, latencies: Latencies) -> dict[str, Cost]:
    """The costs of layers with their measured time, each with the channels that it has now."""
    now, seconds = {layer.name: layer for layer in find_layers(cut.graph)}, dict[str, float]()
    for name, parts in cut.factorized.chains.items():
        seconds[name] = latencies.of_chain(cut.graph, parts[0].input, [part.map for part in parts])
    for name in plan.layers.keys() - seconds.keys():
        seconds[name] = latencies.of_layer(cut.graph, now[name]).whole
    return {name: dataclasses.replace(cost, latency=seconds[name]) for name, cost in plan.after.items()}


def _chains(graph: Graph, plan: CompressionPlan) -> dict[str, Candidate]:
    """The layers that become chains, as they are in the graph whose channels are gone."""
    return {
        layer.name: Candidate(layer, matrix_of(graph, layer), plan.metrics[layer.name], ())
        for layer in find_layers(graph)
        if layer.name in plan.chains
    }


def _parts(graph: Graph, plan: CompressionPlan, candidate: Candidate) -> list[Part]:
    """The layers of a chain, with factors of the weights alone."""
    dtype = graph.constants[candidate.layer.weight].dtype
    return parts_of(white_problem(candidate), plan.chains[candidate.layer.name], dtype)


def _tasks(cut: _Cut, plan: CompressionPlan) -> list[RefitTask | FitTask]:
    """The chains and the layers that get new weights."""
    tasks: list[RefitTask | FitTask] = []
    layers: dict[str, Layer] = {layer.name: layer for layer in find_layers(cut.graph)}
    for name in plan.fitted:
        if name in cut.chains:
            unit = Unit.of_block(cut.graph, name, cut.factorized.chains[name], cut.factorized.outputs[name])
            tasks.append(RefitTask(unit, plan, cut.chains[name]))
        else:
            tasks.append(FitTask(Unit.of_layer(cut.graph, layers[name]), plan))
    return tasks


def _store(graph: Graph, new: FloatWeight) -> None:
    """Give a layer a new weight and bias."""
    set_constant(graph, new.layer.weight, new.weight(graph.constants[new.layer.weight].dtype).contiguous())
    if new.bias is not None:
        assert new.layer.own_bias is not None
        set_constant(graph, new.layer.own_bias, new.bias)


def _through(new: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Counterparts in the reference, by way of those in the graph before."""
    return {name: before[middle] for name, middle in new.items() if middle in before}
