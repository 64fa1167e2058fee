"""What is done to one unit: the grids, the codes and the biases of its layers, and the record of them.

a layer     statistics  ──▶  grid  ──▶  codes  ──▶  correction of the bias, where the recipe asks for it
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
from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.graph.unit import Unit
from roundwise.methods.interfaces import (
    BlockProblem,
    BlockSolver,
    Correction,
    Problem,
    RangeEstimator,
    Rounding,
    RoundingSolver,
    check_answer,
    estimated_work,
)
from roundwise.numerics.grid import Codebook, Granularity, Grid
from roundwise.numerics.summary import summarize
from roundwise.report import LayerReport
from roundwise.statistics import Addend, BlockStatistic, Nothing, Statistic


class Pair(NamedTuple):
    """One thing in both streams; the same object where they agree."""

    float: Any
    quantized: Any


class Need(NamedTuple):
    """A kind of statistic, which stream's inputs it is shown, and for which targets (see `Traits`)."""

    kind: type[Statistic]
    float_inputs: bool = False
    addition_aware: bool = False


Statistics = dict[Need, Statistic]
"""What is known of one layer; what both methods need is collected once."""


@final
@dataclass(frozen=True, eq=False)
class LayerTask:
    """A unit of one layer, how to quantize it, the words for it in the report, and what is known before any sample."""

    unit: Unit
    codebook: Codebook
    granularity: Granularity
    ranges: RangeEstimator[Any]
    rounding: RoundingSolver[Any]
    words: tuple[str, str, str]  # granularity, ranges, rounding
    correction: Correction[Any] | None = None
    known: Mapping[type[Statistic], Statistic] = field(default_factory=dict)

    @property
    def layer(self) -> Layer:
        """The layer."""
        return self.unit.layer

    @property
    def needs(self) -> tuple[Need, ...]:
        """What its methods need to know: range estimation, the solver, and the correction if there is one."""
        sums = self.addend is not None
        needs = Need(self.ranges.needs), Need(self.rounding.needs, self.rounding.traits.float_inputs, sums)
        return needs if self.correction is None else (*needs, Need(self.correction.needs, addition_aware=sums))

    @property
    def addend(self) -> fx.Node | None:
        """What the layer's output is added to, if it is and the solver makes up for it."""
        return self.layer.addend if self.rounding.traits.addition_aware else None

    def statistics(self, samples: int, seed: int) -> Statistics:
        """What its methods need: what is known already, and empty ones to collect the rest in."""
        return {
            need: self.known.get(need.kind)
            or need.kind.empty(self.layer.map, samples, generator_for(seed, f"{self.layer.name}: samples"))
            for need in self.needs
        }

    def show(
        self, statistics: Statistics, inputs: Sequence[Pair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Let the statistics see one batch: the layer's input in both streams, its targets, and what is added to it."""
        (pair,) = inputs
        for need, statistic in statistics.items():
            seen = pair.float if need.float_inputs else pair.quantized
            if addend is not None and need.addition_aware:
                statistic.add_sum(seen, targets, samples, addend)
            else:
                statistic.add(seen, targets, samples)

    def solve(self, statistics: Statistics, seed: int) -> list[Solved]:
        """Choose the layer's grid, its codes and its bias."""
        graph, layer, start = self.unit.graph, self.layer, time.perf_counter()
        matrix = layer.map.to_matrix(graph.constants[layer.weight]).float()
        of_ranges, of_rounding, *_ = self.needs
        grid = self.ranges.estimate(matrix, self.codebook, self.granularity, statistics[of_ranges], layer.name)
        middle = time.perf_counter()
        problem = Problem(
            layer.name,
            matrix,
            layer.map.bias_rows,
            grid,
            statistics[of_rounding],
            layer.nonlinearity,
            bias_is_free=layer.own_bias is not None,
        )
        answer = self.rounding.solve(problem, generator_for(seed, layer.name))
        check_answer(answer, problem, self.rounding)
        end = time.perf_counter()
        chosen = _corrected(graph, self, _rounded(layer, self.codebook, grid, answer), statistics)
        notes = [*_notes(self, matrix, statistics), answer.note]
        return [
            Solved(
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
        """What the statistics and the methods' work on them occupy at most; `positions` are those of one sample."""
        return max(need.kind.bytes_needed(self.layer.map, samples, positions) for need in self.needs)

    def work(self, rows_per_sample: int, samples: int) -> float:
        """What the solver will cost, in forward passes of the layer over one row."""
        return estimated_work(self.rounding, rows_per_sample, samples)

    def check_without_data(self) -> None:
        """Raise if one of its methods learns from samples.

        Raises:
            RecipeError: names the method.
        """
        methods: list[Any] = [self.ranges, self.rounding, *([] if self.correction is None else [self.correction])]
        for method in methods:
            kind: type[Statistic] = method.needs
            if kind.from_samples:
                raise RecipeError(
                    f"layer '{self.layer.name}': {type(method).__name__} learns from samples of the layer's inputs "
                    f"({kind.__name__}), and there is no data. Give calibration samples, or take methods that need "
                    "none: rounding=Nearest(), ranges=WeightMSE() or MinMax(), correction=AnalyticBias() or None."
                )


@final
@dataclass(frozen=True, eq=False)
class BlockTask:
    """A unit of several layers, how each is quantized, and the solver that chooses all codes together.

    The methods of `layers` that would choose codes or correct biases one by one are not used.
    """

    unit: Unit
    layers: tuple[LayerTask, ...]
    solver: BlockSolver[Any]

    @property
    def addend(self) -> fx.Node | None:
        """None: the targets of a block are the reference's outputs as they are."""
        return None

    def statistics(self, samples: int, seed: int) -> BlockStatistic:
        """An empty statistic of the kind that the solver needs."""
        return self.solver.needs.empty(self.unit, samples, generator_for(seed, f"{self.unit.name}: samples"))

    def show(
        self, statistics: BlockStatistic, inputs: Sequence[Pair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Let the statistic see one batch: the block's inputs in the network so far, and its targets."""
        statistics.add([pair.quantized for pair in inputs], targets, samples)

    def solve(self, statistics: BlockStatistic, seed: int) -> list[Solved]:
        """Choose the grids of all layers, then their codes together.

        Raises:
            RecipeError: ranges are chosen by looking at samples of one layer, which a block does not keep.
        """
        start = time.perf_counter()
        weights, grids = {}, {}
        for task in self.layers:
            layer = task.layer
            if task.ranges.needs is not Nothing:
                raise RecipeError(
                    f"layer '{layer.name}' is in the block '{self.unit.name}', and {type(task.ranges).__name__} looks "
                    "at the layer's own samples, which a block does not keep. Take ranges=WeightMSE() or MinMax()."
                )
            matrix = layer.map.to_matrix(self.unit.graph.constants[layer.weight]).float()
            weights[layer.name] = matrix
            grids[layer.name] = task.ranges.estimate(matrix, task.codebook, task.granularity, Nothing(), layer.name)
        middle = time.perf_counter()
        problem = BlockProblem(self.unit, weights, grids, statistics)
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
                Solved(
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
        """What the statistic and the solver's work on it occupy at most."""
        return self.solver.needs.bytes_needed(self.unit, samples)

    def work(self, rows_per_sample: int, samples: int) -> float:
        """0: block solvers do not say yet what they cost, so the plan's time leaves them out."""
        return 0.0


UnitTask = LayerTask | BlockTask


@final
@dataclass(frozen=True, eq=False)
class Solved:
    """A layer rounded to nearest and as the solver chooses (with the bias corrected), the notes, and seconds spent."""

    task: LayerTask
    matrix: Tensor
    nearest: QuantizedWeight
    chosen: QuantizedWeight
    note: str
    seconds_ranges: float
    seconds_rounding: float


def _nearest(layer: Layer, codebook: Codebook, grid: Grid, matrix: Tensor) -> QuantizedWeight:
    return QuantizedWeight(layer, grid.quantize(matrix).to(codebook.dtype), grid)


def _rounded(layer: Layer, codebook: Codebook, grid: Grid, answer: Rounding) -> QuantizedWeight:
    return QuantizedWeight(layer, answer.codes.to(codebook.dtype), answer.grid or grid, answer.bias_shift)


def layer_report(solved: Solved, error_nearest: float, error: float, note: str = "") -> LayerReport:
    """The record of a layer, with its errors as they were measured, NaN where they were not, and one more note."""
    task, chosen, matrix = solved.task, solved.chosen, solved.matrix
    granularity, ranges, rounding = task.words
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
    """A layer's own source of randomness: the same for the same seed and name, whatever else happens in the run."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _corrected(graph: Graph, task: LayerTask, weight: QuantizedWeight, statistics: Statistics) -> QuantizedWeight:
    """With the bias that the correction gives it, if there is one and the layer has a bias of its own."""
    layer, correction = task.layer, task.correction
    if correction is None or layer.own_bias is None or layer.map.bias is None:
        return weight
    shape = weight.codes.shape[:2]
    before = torch.zeros(shape, device=layer.map.device) if weight.bias_shift is None else weight.bias_shift
    dtype = graph.constants[layer.weight].dtype
    matrix = layer.map.to_matrix(weight.weight(dtype)).float()  # as the program computes with it
    bias = layer.map.bias_rows + before
    shift = correction.shift(matrix, bias, statistics[task.needs[-1]])
    if shift.shape != shape:
        raise RecipeError(f"{correction!r} gave layer '{layer.name}' a shift {list(shift.shape)}, not {list(shape)}.")
    return dataclasses.replace(weight, bias_shift=before + shift)


def _notes(task: LayerTask, matrix: Tensor, statistics: Statistics) -> list[str]:
    """What a reader of the layer's report must know."""
    layer, correction = task.layer, task.correction
    notes = [f"used by {len(layer.calls)} calls; rounded for the first"] if len(layer.calls) > 1 else []
    weight = layer.node.args[1]
    if isinstance(weight, fx.Node) and len(weight.users) > len(layer.calls):
        notes.append("its weight is also read by other operations, which keep the float one")
    if not matrix.any():
        notes.append("all weights are zero")
    if correction is not None and layer.own_bias is None:
        why = "no bias" if layer.map.bias is None else "a bias that is not its own alone"
        notes.append(f"not corrected: it has {why}")
    elif correction is not None:
        notes.append(correction.note(statistics[task.needs[-1]]))
    return notes
