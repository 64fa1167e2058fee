"""Quantize one unit: choose the grids, codes and biases of its layers, and report on each layer.

a layer     statistics  ──▶  grid  ──▶  codes  ──▶  correction of the bias, if the recipe has one
a block     grids  ──▶  statistics  ──▶  codes of all its layers together
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.engine.answers import StreamPair
from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.graph.unit import Unit
from roundwise.methods.answer_checks import check_answer, check_grid, check_shift, left_alone
from roundwise.methods.interfaces import (
    BlockProblem,
    BlockSolver,
    Correction,
    Problem,
    RangeEstimator,
    Rounding,
    RoundingSolver,
    estimated_work,
)
from roundwise.numerics.grid import Codebook, Granularity, Grid
from roundwise.numerics.summary import summarize
from roundwise.report import LayerReport
from roundwise.statistics import Addend, BlockStatistic, Nothing, Statistic


class Need(NamedTuple):
    """A kind of statistic, and which inputs and targets it collects (`Traits` explains the two choices)."""

    kind: type[Statistic]
    float_inputs: bool = False
    addition_aware: bool = False


Statistics = dict[Need, Statistic]
"""The statistics of one layer; one that several methods need is collected once."""


@final
@dataclass(frozen=True, eq=False)
class LayerTask:
    """A unit of one layer, and how to quantize it.

    Attributes:
        unit: the unit.
        codebook, granularity: the integers that codes may take, and which weights share a scale.
        ranges, rounding, correction: the methods.
        method_names: the names of granularity, range estimator and solver, for the report.
        known: statistics that need no samples, such as means expected from batch-norm.
    """

    unit: Unit
    codebook: Codebook
    granularity: Granularity
    ranges: RangeEstimator[Any]
    rounding: RoundingSolver[Any]
    method_names: tuple[str, str, str]
    correction: Correction[Any] | None = None
    known: Mapping[type[Statistic], Statistic] = field(default_factory=dict)

    @property
    def layer(self) -> Layer:
        """The layer."""
        return self.unit.layer

    @property
    def changes(self) -> bool:
        """True: the layer gets quantized weights."""
        return True

    @property
    def needs(self) -> tuple[Need, ...]:
        """The statistics that the methods need: range estimator, solver, and the correction if there is one."""
        sums = self.addend is not None
        needs = Need(self.ranges.needs), Need(self.rounding.needs, self.rounding.traits.float_inputs, sums)
        return needs if self.correction is None else (*needs, Need(self.correction.needs, addition_aware=sums))

    @property
    def addend(self) -> fx.Node | None:
        """The other branch of the addition after the layer, if the solver is `addition_aware` and there is one."""
        return self.layer.addend if self.rounding.traits.addition_aware else None

    def statistics(self, samples: int, seed: int) -> Statistics:
        """The statistics that the methods need: those that are known, and empty ones for those to be collected."""
        return {
            need: self.known.get(need.kind)
            or need.kind.empty(self.layer.map, samples, generator_for(seed, f"{self.layer.name}: samples"))
            for need in self.needs
        }

    def collect(
        self, statistics: Statistics, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the statistics: the layer's input in both streams, its targets, and the other branch."""
        (pair,) = inputs
        for need, statistic in statistics.items():
            seen = pair.reference if need.float_inputs else pair.current
            if addend is not None and need.addition_aware:
                statistic.add_sum(seen, targets, samples, addend)
            else:
                statistic.add(seen, targets, samples)

    def solve(self, statistics: Statistics, seed: int) -> list[SolvedLayer]:
        """Choose the layer's grid, codes and bias."""
        graph, layer, start = self.unit.graph, self.layer, time.perf_counter()
        matrix = _copy(layer.map.to_matrix(graph.constants[layer.weight]))
        of_ranges, of_rounding, *_ = self.needs
        with left_alone(self.ranges, layer.name, {"weight": matrix}):
            grid = self.ranges.estimate(matrix, self.codebook, self.granularity, statistics[of_ranges], layer.name)
        check_grid(grid, self.codebook, layer.name, self.ranges)
        middle = time.perf_counter()
        problem = Problem(
            layer.name,
            matrix,
            _copy(layer.map.bias_rows),
            grid,
            statistics[of_rounding],
            layer.nonlinearity,
            bias_is_free=layer.own_bias is not None,
        )
        with left_alone(self.rounding, layer.name, _tensors_of(problem)):
            answer = self.rounding.solve(problem, generator_for(seed, layer.name))
        check_answer(answer, problem, self.rounding)
        end = time.perf_counter()
        chosen = _corrected(graph, self, _rounded(layer, self.codebook, grid, answer), statistics)
        notes = [*_notes(self, matrix, statistics), answer.note]
        return [
            SolvedLayer(
                task=self,
                matrix=matrix,
                nearest=_nearest(layer, self.codebook, grid, matrix),
                chosen=chosen,
                note="; ".join(filter(None, notes)),
                seconds_ranges=middle - start,
                seconds_rounding=end - middle,
            )
        ]

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the statistics and for solving with them, at most; `positions` is their number per sample."""
        return max(need.kind.bytes_needed(self.layer.map, samples, positions) for need in self.needs)

    def work(self, items_per_sample: int, samples: int) -> float:
        """The estimated cost of solving, in forward passes of the layer over one item."""
        return estimated_work(self.rounding, items_per_sample, samples)

    def check_without_data(self) -> None:
        """Raise if one of the methods needs samples.

        Raises:
            RecipeError: names the method.
        """
        methods: list[Any] = [self.ranges, self.rounding, *([] if self.correction is None else [self.correction])]
        for method in methods:
            kind: type[Statistic] = method.needs
            if kind.from_samples:
                raise RecipeError(
                    f"layer '{self.layer.name}': {type(method).__name__} needs samples of the layer's inputs "
                    f"({kind.__name__}), but there is no data. Give calibration samples, or choose methods that need "
                    "none: rounding=Nearest(), ranges=WeightMSE() or MinMax(), correction=AnalyticBias() or None; "
                    "on the command line --rounding nearest, --ranges weight-mse or min-max, --correction "
                    "analytic-bias or none."
                )


@final
@dataclass(frozen=True, eq=False)
class BlockTask:
    """A unit of several layers, and the solver that chooses the codes of all of them together.

    Of the tasks in `layers`, only codebook, granularity and range estimator are used. No recipe makes such a task,
    since no built-in solver works on a block; `tests/integration/test_units.py` makes one.
    """

    unit: Unit
    layers: tuple[LayerTask, ...]
    solver: BlockSolver[Any]

    @property
    def changes(self) -> bool:
        """True: the layers get quantized weights."""
        return True

    @property
    def addend(self) -> fx.Node | None:
        """None: the targets of a block are the outputs of the reference network, without another branch."""
        return None

    def statistics(self, samples: int, seed: int) -> BlockStatistic:
        """An empty statistic of the kind that the solver needs."""
        return self.solver.needs.empty(self.unit, samples, generator_for(seed, f"{self.unit.name}: samples"))

    def collect(
        self,
        statistics: BlockStatistic,
        inputs: Sequence[StreamPair],
        targets: Tensor,
        samples: int,
        addend: Addend | None,
    ) -> None:
        """Add one batch to the statistic: the block's inputs in the network so far, and its targets."""
        statistics.add([pair.current for pair in inputs], targets, samples)

    def solve(self, statistics: BlockStatistic, seed: int) -> list[SolvedLayer]:
        """Choose the grids of all layers, then their codes together.

        Raises:
            RecipeError: a range estimator needs samples of a single layer, which a block does not keep.
        """
        start = time.perf_counter()
        weights, grids = {}, {}
        for task in self.layers:
            layer = task.layer
            if task.ranges.needs is not Nothing:
                raise RecipeError(
                    f"layer '{layer.name}' is in the block '{self.unit.name}', but {type(task.ranges).__name__} needs "
                    "samples of this layer, which a block does not keep. Choose ranges=WeightMSE() or MinMax()."
                )
            matrix = _copy(layer.map.to_matrix(self.unit.graph.constants[layer.weight]))
            weights[layer.name] = matrix
            grids[layer.name] = task.ranges.estimate(matrix, task.codebook, task.granularity, Nothing(), layer.name)
        middle = time.perf_counter()
        problem = BlockProblem(self.unit, weights, grids, statistics)
        tensors = {f"weights['{name}']": weight for name, weight in weights.items()}
        with left_alone(self.solver, self.unit.name, tensors):
            answers = self.solver.solve(problem, generator_for(seed, self.unit.name))
        end, share = time.perf_counter(), len(self.layers)
        solved = []
        for task in self.layers:
            layer, matrix, grid = task.layer, weights[task.layer.name], grids[task.layer.name]
            answer = answers[layer.name]
            free = layer.own_bias is not None
            check_answer(
                answer,
                Problem(layer.name, matrix, layer.map.bias_rows, grid, Nothing(), bias_is_free=free),
                self.solver,
            )
            solved.append(
                SolvedLayer(
                    task=task,
                    matrix=matrix,
                    nearest=_nearest(layer, task.codebook, grid, matrix),
                    chosen=_rounded(layer, task.codebook, grid, answer),
                    note="; ".join(filter(None, [f"chosen together with the block '{self.unit.name}'", answer.note])),
                    seconds_ranges=(middle - start) / share,
                    seconds_rounding=(end - middle) / share,
                )
            )
        return solved

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the statistic and for solving with it, at most."""
        return self.solver.needs.bytes_needed(self.unit, samples)

    def work(self, items_per_sample: int, samples: int) -> float:
        """0: block solvers do not state their cost, so the plan's estimate of time does not include them."""
        return 0.0


@final
@dataclass(frozen=True, eq=False)
class SolvedLayer:
    """One quantized layer.

    Attributes:
        task: how it was quantized.
        matrix: the float weights.
        nearest: the weights rounded to nearest, for comparison.
        chosen: the weights as the solver has rounded them, with the corrected bias.
        note: for the report.
        seconds_ranges, seconds_rounding: time spent on each.
    """

    task: LayerTask
    matrix: Tensor
    nearest: QuantizedWeight
    chosen: QuantizedWeight
    note: str
    seconds_ranges: float
    seconds_rounding: float

    @property
    def weights(self) -> tuple[QuantizedWeight]:
        """The chosen weight, in the form that the stream takes."""
        return (self.chosen,)

    @property
    def simpler(self) -> tuple[QuantizedWeight]:
        """The weight rounded to nearest, likewise."""
        return (self.nearest,)

    @property
    def seconds(self) -> dict[str, float]:
        """Time by activity."""
        return {"ranges": self.seconds_ranges, "rounding": self.seconds_rounding}

    def report(self, error_simpler: float, error: float, note: str) -> LayerReport:
        """The entry for the report; errors that were not measured are NaN."""
        return layer_report(self, error_simpler, error, note)


def _copy(tensor: Tensor) -> Tensor:
    """A copy in float32. Without it a method that changes its arguments in place would change the user's model."""
    return tensor.to(torch.float32, copy=True)


def _tensors_of(problem: Problem[Any]) -> dict[str, Tensor]:
    """The tensors that a solver must leave alone, by their names in the problem."""
    grid = problem.grid
    parts = {"weight": problem.weight, "bias": problem.bias}
    return parts | {"grid.scale": grid.scale, "grid.zero_point": grid.zero_point}


def _nearest(layer: Layer, codebook: Codebook, grid: Grid, matrix: Tensor) -> QuantizedWeight:
    return QuantizedWeight(layer, grid.quantize(matrix).to(codebook.dtype), grid)


def _rounded(layer: Layer, codebook: Codebook, grid: Grid, answer: Rounding) -> QuantizedWeight:
    return QuantizedWeight(layer, answer.codes.to(codebook.dtype), answer.grid or grid, answer.bias_shift)


def layer_report(solved: SolvedLayer, error_nearest: float, error: float, note: str = "") -> LayerReport:
    """The report of a layer; errors that were not measured are NaN, and `note` is added to the layer's own notes."""
    task, chosen, matrix = solved.task, solved.chosen, solved.matrix
    granularity, ranges, rounding = task.method_names
    return LayerReport(
        name=task.layer.name,
        operation=task.layer.map.operation,
        shape=task.layer.map.weight_shape,
        bits=task.codebook.bits,
        granularity=granularity,
        symmetric=task.codebook.symmetric,
        ranges=ranges,
        rounding=rounding,
        error_nearest=error_nearest,
        error=error,
        flips=(chosen.codes != chosen.grid.quantize(matrix)).float().mean().item(),
        seconds=solved.seconds_ranges + solved.seconds_rounding,
        note="; ".join(filter(None, (solved.note, note))),
        summary=summarize(matrix, chosen.grid),
    )


def generator_for(seed: int, name: str) -> torch.Generator:
    """A random generator for one layer; it depends on the seed and the name only, not on other layers."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _corrected(graph: Graph, task: LayerTask, weight: QuantizedWeight, statistics: Statistics) -> QuantizedWeight:
    """The weight with its bias corrected; unchanged if there is no correction, or no bias that only this layer uses."""
    layer, correction = task.layer, task.correction
    if correction is None or layer.own_bias is None or layer.map.bias is None:
        return weight
    shape = weight.codes.shape[:2]
    before = torch.zeros(shape, device=layer.map.device) if weight.bias_shift is None else weight.bias_shift
    dtype = graph.constants[layer.weight].dtype
    matrix = layer.map.to_matrix(weight.weight(dtype)).float()  # rounded to the network's dtype, as in the program
    bias = layer.map.bias_rows + before
    shift = correction.shift(matrix, bias, statistics[task.needs[-1]])
    check_shift(shift, shape, layer.name, correction)
    return dataclasses.replace(weight, bias_shift=before + shift)


def _notes(task: LayerTask, matrix: Tensor, statistics: Statistics) -> list[str]:
    """Notes for the layer's entry in the report."""
    layer, correction = task.layer, task.correction
    notes = [f"used by {len(layer.calls)} calls; rounded for the inputs of the first"] if len(layer.calls) > 1 else []
    weight = layer.node.args[1]
    if isinstance(weight, fx.Node) and len(weight.users) > len(layer.calls):
        notes.append("other operations read its weight too, and keep the float weight")
    if not matrix.any():
        notes.append("all weights are zero")
    if correction is not None and layer.own_bias is None:
        why = "it has no bias" if layer.map.bias is None else "other operations read its bias too"
        notes.append(f"not corrected: {why}")
    elif correction is not None:
        notes.append(correction.note(statistics[task.needs[-1]]))
    return notes
