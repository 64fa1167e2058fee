"""Measure the caller's metric with one layer cut at a time, for a choice of sizes that compares accuracies.

1. Of each layer's options keep at most nine: for each share k/10 of its cost, the one with the smallest predicted
   error.
2. Fit the chain of each of them to the layer's moments, in one pass over the samples. The inputs are those of the
   original network, since no other layer is cut. Without samples, take factors of the weights alone.
3. Evaluate one network per option: the original, with this chain in the place of its layer.
"""

from __future__ import annotations

import dataclasses
import numbers
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.candidates import Candidate, Option, white_problem
from roundwise.engine.compression_costs import CompressionCosts
from roundwise.engine.compression_plan import name_of_method
from roundwise.engine.measuring import regression_for
from roundwise.engine.network import Network
from roundwise.engine.refitting import parts_of
from roundwise.engine.result import model_of
from roundwise.engine.run import Run
from roundwise.engine.stream import Stream
from roundwise.engine.unit import generator_for
from roundwise.errors import RecipeError
from roundwise.events import NetworkEvaluated, PassStarted
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.factorize import Part, factorize
from roundwise.graph.unit import Unit
from roundwise.methods.compressing import FactorizationProblem
from roundwise.recipe.compress import Compress, CostUnit
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Rewrite
from roundwise.statistics import Addend, Gram
from roundwise.wording import number_of

SHARES = tuple(k / 10 for k in range(1, 10))
"""The shares of a layer's cost that are tried. More take as many more evaluations, and come nearer to the budget."""


def evaluated(graph: Graph, candidates: Sequence[Candidate], stage: Compress) -> list[Candidate]:
    """The layers with the options that are evaluated: for each share of its cost, the one with the smallest error.

    Args:
        graph: the network.
        candidates: its layers, with all options.
        stage: says what the budget, and so the shares, count.
    """
    unit, _ = stage.budget
    costs = CompressionCosts(graph, (), candidates, unit)
    whole = costs.of_layers(costs.nothing)
    return [_tried(one, unit, whole[one.layer.name].of(unit)) for one in candidates]


def _tried(candidate: Candidate, unit: CostUnit, whole: float) -> Candidate:
    chosen: dict[int, Option] = {}
    for share in SHARES:
        small = [option for option in candidate.options if option.cost(unit) <= share * whole]
        if small:
            best = min(small, key=lambda option: option.error)
            chosen[id(best)] = best
    reason = candidate.reason
    if candidate.options and not chosen:
        reason = f"no size needs {SHARES[-1]:.0%} of its {unit} or less"
    return dataclasses.replace(candidate, options=tuple(chosen.values()), reason=reason)


def losses_of(candidates: Sequence[Candidate], network: Network, run: Run, before: float) -> list[list[float]]:
    """How much lower the metric is for each option of each layer than `before`, with this layer alone cut.

    Raises:
        ModelError: outputs of layers are not finite.
        RecipeError: the metric fails, or a method's answer does not fit.
        MemoryBudgetError: the disk is full.
    """
    total, cut = sum(len(one.options) for one in candidates), [one for one in candidates if one.options]
    run.progress(
        PassStarted(
            f"evaluating {number_of(total, 'network')} with one smaller layer each: {number_of(len(cut), 'layer')}, "
            f"at most {len(SHARES)} sizes of each"
        )
    )
    fitted = _fitted(cut, network, run)
    losses, start, done = dict[str, list[float]](), time.perf_counter(), 0
    for one in cut:
        name = one.layer.name
        losses[name] = []
        for option, parts in zip(one.options, fitted[name], strict=True):
            changed = factorize(network.graph, {name: parts}).graph
            size = f"{name_of_method(option.method)} {'×'.join(map(str, option.size))}"
            found = score(dataclasses.replace(network, graph=changed), run, f"layer '{name}' alone as {size}")
            losses[name].append(before - found)
            done += 1
            left = (time.perf_counter() - start) / done * (total - done)
            run.progress(NetworkEvaluated(name, size, found, done - 1, total, left))
    return [losses.get(one.layer.name, []) for one in candidates]


def score(network: Network, run: Run, what: str) -> float:
    """The caller's metric of a network; `what` says in errors which network that is.

    Raises:
        RecipeError: the metric raises an exception, or gives something else than a finite number.
    """
    assert run.metric is not None
    model = model_of(network, run, Recipe((Rewrite(()),)))
    try:
        with torch.no_grad():
            found: Any = run.metric(model)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RecipeError(
            f"evaluate raised {type(error).__name__} for {what}: {error}. It is called with a network, as "
            "evaluate(network), and must return a number. Correct the function; the network is called as the model is."
        ) from error
    if isinstance(found, Tensor | np.ndarray | np.generic) and found.ndim == 0:
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        raise RecipeError(
            f"evaluate returned {found!r} for {what}, which is a {type(found).__name__}. It must return one real "
            "number, larger for better networks, such as the share of right answers."
        )
    if not np.isfinite(float(found)):
        raise RecipeError(
            f"evaluate returned {float(found)} for {what}, so networks cannot be compared by it. Correct the function "
            "so that it returns a finite number for every network; where a loss can overflow, "
            "return the share of right answers instead."
        )
    return float(found)


def _fitted(candidates: Sequence[Candidate], network: Network, run: Run) -> dict[str, list[list[Part]]]:
    """The chains of all options by the name of the layer; they take several times the memory of the network."""
    graph = network.graph
    if not run.has_data:
        dtypes = {one.layer.name: graph.constants[one.layer.weight].dtype for one in candidates}
        return {
            one.layer.name: [parts_of(white_problem(one), o, dtypes[one.layer.name]) for o in one.options]
            for one in candidates
        }
    assert run.calibration is not None
    tasks = [_FitTask(Unit.of_layer(graph, one.layer), one) for one in candidates]
    batches = list(run.calibration.batches)
    if tasks:
        Stream(graph, batches, run.samples, tasks, keeps_inputs=True, seed=run.seed, store=run.store).run()
    return {task.unit.name: task.fitted for task in tasks}


@final
@dataclass(frozen=True, eq=False)
class _FitTask:
    """A layer whose options are fitted. The stream has it solve, and `fitted` then has the chains."""

    unit: Unit
    candidate: Candidate
    fitted: list[list[Part]] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        """False: the layer stays as it is."""
        return False

    @property
    def addend(self) -> fx.Node | None:
        """None: the targets are the layer's own outputs."""
        return None

    def statistics(self, samples: int, seed: int) -> Gram:
        """Empty moments."""
        return Gram.empty(self.unit.layer.map, samples, generator_for(seed, f"{self.unit.name}: samples"))

    def collect(
        self, statistics: Gram, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the moments."""
        (pair,) = inputs
        statistics.add(pair.current, targets, samples)

    def solve(self, statistics: Gram, seed: int) -> list[Any]:
        """Fit the chains of all options; no weights change."""
        one = self.candidate
        dtype = self.unit.graph.constants[one.layer.weight].dtype
        regression = regression_for(statistics, one.weight)
        problem = FactorizationProblem(one.layer.name, one.layer.map, regression, one.metric)
        self.fitted.extend(parts_of(problem, option, dtype) for option in one.options)
        return []

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the moments, for decompositions of them, and for the chains, at most."""
        _, rows, cols = self.unit.layer.map.matrix_shape
        chains = 8 * sum(part.parameters for option in self.candidate.options for part in option.parts)
        return Gram.bytes_needed(self.unit.layer.map, samples, positions) + 8 * 6 * (cols + rows) ** 2 + chains

    def work(self, items_per_sample: int, samples: int) -> float:
        """Collecting moments is what takes time."""
        return Gram.forward_passes * samples * items_per_sample
