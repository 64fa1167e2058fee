"""Run the stage `Compress`: make layers smaller within a budget.

    1. Measure: for each layer and each method, the predicted error of each size (`engine/candidates.py`).
    2. Choose: an option for each layer, or none, within the budget.
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
from roundwise.engine.refitting import FloatWeight, RefitTask, answer_of, chain_report
from roundwise.engine.run import Run
from roundwise.engine.stream import Stream
from roundwise.errors import RecipeError
from roundwise.events import PassStarted
from roundwise.graph.edit import set_constant
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.factorize import FactorizedGraph, Part, factorize
from roundwise.graph.unit import Unit
from roundwise.methods.compressing import LayerOptions, Pruning
from roundwise.recipe.compress import Compress
from roundwise.report import OutputReport, StageReport, worst_error
from roundwise.report_compression import CompressionReport
from roundwise.wording import number_of


def run_compress(stage: Compress, network: Network, run: Run) -> Network:
    """Compress a network.

    Raises:
        ModelError: there are no layers, or weights or outputs of layers are not finite.
        RecipeError: the budget cannot be met, or a method's answer does not fit.
        MemoryBudgetError: the disk is full.
    """
    if any(isinstance(method, Pruning) for method in stage.methods):
        return run_pruning(stage, network, run)
    start = time.perf_counter()
    candidates = find_candidates(network.graph, stage, run)
    measured = time.perf_counter()
    chosen = _choose(candidates, stage)
    to_cut = [one for one in candidates if one.layer.name in chosen]
    parts = {one.layer.name: _parts(network.graph, one, chosen[one.layer.name]) for one in to_cut}
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


def _choose(candidates: Sequence[Candidate], stage: Compress) -> dict[str, Option]:
    """What each layer becomes, for those that are cut.

    Raises:
        RecipeError: the budget is below what can be reached.
    """
    unit, share = ("macs", stage.macs) if stage.macs is not None else ("parameters", stage.parameters)
    assert share is not None
    total = sum(getattr(one.cost, unit) for one in candidates)
    budget = share * total
    costs = [[getattr(one.cost, unit), *(getattr(o.cost, unit) for o in one.options)] for one in candidates]
    least = sum(map(min, costs))
    if least > budget:
        names = ", ".join(type(method).__name__ for method in stage.methods)
        left = [one for one in candidates if not one.options]
        raise RecipeError(
            f"{unit}={share:g} cannot be reached: with {names} and ranks that are multiples of {stage.multiple}, at "
            f"least {math.ceil(1000 * least / total) / 1000:g} of the {total:,} {_WORDS[unit]} is left, and "
            f"{number_of(len(left), 'layer')} of {len(candidates)} cannot be cut. Give a larger share, more methods, "
            "or a smaller multiple."
        )
    layers = [
        LayerOptions(one.layer.name, tuple(cost), (0.0, *(option.error for option in one.options)))
        for one, cost in zip(candidates, costs, strict=True)
    ]
    numbers = stage.choice.choose(layers, budget)
    return {
        one.layer.name: one.options[number - 1] for one, number in zip(candidates, numbers, strict=True) if number > 0
    }


_WORDS = {"macs": "multiplications", "parameters": "parameters"}


def _parts(graph: Graph, candidate: Candidate, option: Option) -> list[Part]:
    """The layers of a chain, with factors of the weights alone."""
    problem, dtype = white_problem(candidate), graph.constants[candidate.layer.weight].dtype
    answer, bias = answer_of(problem, option.method, option, dtype)
    maps = list(option.method.parts(candidate.layer.map, option.size))
    maps[-1] = dataclasses.replace(maps[-1], bias=bias)
    return [(part, weight.to(dtype)) for part, weight in zip(maps, answer.weights, strict=True)]


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
