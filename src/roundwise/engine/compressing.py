"""Run the stage `Compress`: make layers smaller within a budget.

    1. Measure: for each layer and each method, the predicted error of each size (`engine/candidates.py`).
    2. Choose: an option for each layer, or none, within the budget. Where the choice evaluates, measure the caller's
       metric first, with one layer cut at a time (`engine/scoring.py`).
    3. Cut: each chosen layer becomes a chain of layers, with factors of its weights alone.
    4. Refit: one pass over two streams, the original network and the one that is cut. In the order in which they run,
       the chains are fitted to the original's outputs, so each makes up for errors of those before it.

Without samples, the errors are those of the weights, and steps 3 and 4 are one.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

from roundwise.engine.candidates import Candidate, Option, find_candidates, white_problem
from roundwise.engine.network import Network
from roundwise.engine.pruning import run_pruning
from roundwise.engine.refitting import FloatWeight, RefitTask, chain_report, parts_of
from roundwise.engine.run import Run
from roundwise.engine.scoring import losses_of, score, tried
from roundwise.engine.stream import Stream
from roundwise.errors import RecipeError
from roundwise.events import PassStarted
from roundwise.graph.edit import set_constant
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.factorize import FactorizedGraph, factorize
from roundwise.graph.unit import Unit
from roundwise.methods.compressing import LayerOptions, Pruning
from roundwise.recipe.compress import Compress
from roundwise.report import OutputReport, StageReport, worst_error
from roundwise.report_compression import CompressionReport
from roundwise.wording import number_of


def run_compress(stage: Compress, network: Network, run: Run) -> Network:
    """Compress a network; where the caller gave a metric, the report says what it is before and after.

    Raises:
        ModelError: there are no layers, or weights or outputs of layers are not finite.
        RecipeError: the budget cannot be met, a method's answer does not fit, or the metric fails.
        MemoryBudgetError: the disk is full.
    """
    before = score(network, run, "the network before compression") if run.metric is not None else math.nan
    if any(isinstance(method, Pruning) for method in stage.methods):
        small = run_pruning(stage, network, run)
    else:
        small = _factorized(stage, network, run, before)
    if run.metric is None:
        return small
    after = score(small, run, "the compressed network")
    report = small.reports[-1]
    notes = (*report.notes, f"the metric is {before:.4g} before and {after:.4g} after compression")
    report = dataclasses.replace(report, notes=notes)
    return dataclasses.replace(small, reports=(*small.reports[:-1], report))


def _factorized(stage: Compress, network: Network, run: Run, score_before: float) -> Network:
    """The network with chains in the place of layers."""
    start = time.perf_counter()
    candidates = find_candidates(network.graph, stage, run)
    _check_budget(candidates, stage)
    losses = [[option.error for option in one.options] for one in candidates]
    if stage.choice.evaluates:
        candidates = [tried(one, _unit(stage)) for one in candidates]
        _check_budget(candidates, stage)
        losses = losses_of(candidates, network, run, score_before)
    measured = time.perf_counter()
    chosen = _choose(candidates, losses, stage)
    to_cut = [one for one in candidates if one.layer.name in chosen]
    parts = {
        one.layer.name: parts_of(
            white_problem(one), chosen[one.layer.name], network.graph.constants[one.layer.weight].dtype
        )
        for one in to_cut
    }
    cut = factorize(network.graph, parts)
    original = network.original or network.graph
    counterparts = _through(cut.counterparts, network.counterparts)
    reports: dict[str, CompressionReport] = {}
    outputs: tuple[OutputReport, ...] = ()
    notes: tuple[str, ...] = ()
    seconds = {"measuring": measured - start}
    if run.has_data:
        if chosen:
            run.progress(PassStarted(f"fitting {number_of(len(chosen), 'layer')}"))
        tasks = [_task(cut, one, chosen[one.layer.name]) for one in to_cut]
        stream = Stream(
            cut.graph,
            run.take_batches(),
            run.samples,
            tasks,
            reference=original,
            counterparts=counterparts,
            keeps_inputs=not run.last,
            seed=run.seed,
            store=run.store,
            progress=run.progress,
        )
        result = stream.run()
        _store(cut.graph, result.weights)
        reports = {report.name: report for report in result.reports}
        outputs, notes = result.outputs, result.notes
        seconds |= result.seconds
    entries = tuple(_entry(one, chosen.get(one.layer.name), reports.get(one.layer.name)) for one in candidates)
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
        original=original,
        counterparts=counterparts,
        reports=(*network.reports, report),
    )


def _check_budget(candidates: Sequence[Candidate], stage: Compress) -> None:
    """Make sure that some choice is within the budget.

    Raises:
        RecipeError: the budget is below what can be reached.
    """
    unit, share = _unit(stage), stage.macs or stage.parameters
    costs, budget = _costs(candidates, stage)
    total, least = sum(cost[0] for cost in costs), sum(map(min, costs))
    if least > budget:
        names = ", ".join(type(method).__name__ for method in stage.methods)
        left = [one for one in candidates if not one.options]
        raise RecipeError(
            f"{unit}={share:g} cannot be reached: with {names} and ranks that are multiples of {stage.multiple}, at "
            f"least {math.ceil(1000 * least / total) / 1000:g} of the {total:,} {_WORDS[unit]} is left, and "
            f"{number_of(len(left), 'layer')} of {len(candidates)} cannot be cut. Give a larger share, more methods, "
            "or a smaller multiple."
        )


def _choose(candidates: Sequence[Candidate], losses: Sequence[Sequence[float]], stage: Compress) -> dict[str, Option]:
    """What each layer becomes, for those that are cut; `losses` has a number for each of their options."""
    costs, budget = _costs(candidates, stage)
    layers = [
        LayerOptions(one.layer.name, tuple(cost), (0.0, *loss))
        for one, cost, loss in zip(candidates, costs, losses, strict=True)
    ]
    numbers = stage.choice.choose(layers, budget)
    return {
        one.layer.name: one.options[number - 1] for one, number in zip(candidates, numbers, strict=True) if number > 0
    }


_WORDS = {"macs": "multiplications", "parameters": "parameters"}


def _unit(stage: Compress) -> str:
    """What the budget counts."""
    return "macs" if stage.macs is not None else "parameters"


def _costs(candidates: Sequence[Candidate], stage: Compress) -> tuple[list[list[int]], float]:
    """What each layer costs as it is, then with each option; and the largest sum."""
    unit, share = _unit(stage), stage.macs or stage.parameters
    assert share is not None
    costs = [[getattr(one.cost, unit), *(getattr(o.cost, unit) for o in one.options)] for one in candidates]
    return costs, share * sum(cost[0] for cost in costs)


def _task(cut: FactorizedGraph, candidate: Candidate, option: Option) -> RefitTask:
    name = candidate.layer.name
    unit = Unit.of_block(cut.graph, name, cut.chains[name], cut.outputs[name])
    return RefitTask(unit, candidate, option)


def _store(graph: Graph, weights: Sequence[FloatWeight]) -> None:
    """Give the layers of a graph new weights and biases."""
    for new in weights:
        set_constant(graph, new.layer.weight, new.weight(graph.constants[new.layer.weight].dtype).contiguous())
        if new.bias is not None:
            assert new.layer.own_bias is not None
            set_constant(graph, new.layer.own_bias, new.bias)


def _through(new: Mapping[str, str], before: Mapping[str, str] | None) -> dict[str, str]:
    """Counterparts in the original network, by way of those in the network that the stage was given."""
    if before is None:
        return dict(new)
    return {name: before[middle] for name, middle in new.items() if middle in before}


def _entry(candidate: Candidate, option: Option | None, measured: CompressionReport | None) -> CompressionReport:
    """The entry of a layer in the report."""
    if measured is not None:
        return measured
    if option is not None:
        return chain_report(candidate, option, (math.nan, math.nan), 0.0)
    macs, parameters = candidate.cost.macs, candidate.cost.parameters
    reason = candidate.reason or "the choice of sizes left it as it is"
    linear = candidate.layer.map
    return CompressionReport(
        name=candidate.layer.name,
        operation=linear.operation,
        shape=linear.weight_shape,
        method="",
        size=(),
        macs=(macs, macs),
        parameters=(parameters, parameters),
        predicted=math.nan,
        error_weights=math.nan,
        error=math.nan,
        seconds=0.0,
        note=reason,
    )
