"""What is done to one layer: its grid, its codes, its bias, and the record of it.

statistics  ──▶  grid  ──▶  codes  ──▶  correction of the bias, where the recipe asks for it
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.methods.interfaces import Correction, Problem, RangeEstimator, RoundingSolver, check_answer
from roundwise.numerics.grid import Codebook, Granularity
from roundwise.numerics.summary import summarize
from roundwise.report import LayerReport
from roundwise.statistics import Statistic


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
    """A layer and how to quantize it, the words for it in the report, and what is known before any sample."""

    layer: Layer
    codebook: Codebook
    granularity: Granularity
    ranges: RangeEstimator[Any]
    rounding: RoundingSolver[Any]
    words: tuple[str, str, str]  # granularity, ranges, rounding
    correction: Correction[Any] | None = None
    known: Mapping[type[Statistic], Statistic] = field(default_factory=dict)

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
class Solved:
    """A layer rounded to nearest and as the solver chooses (with the bias corrected), the notes, and seconds spent."""

    nearest: QuantizedWeight
    chosen: QuantizedWeight
    note: str
    seconds_ranges: float
    seconds_rounding: float


def solve_layer(graph: Graph, task: LayerTask, matrix: Tensor, statistics: Statistics, seed: int) -> Solved:
    """Choose the layer's grid, its codes and its bias; the matrix is its float32 weight."""
    layer, start = task.layer, time.perf_counter()
    of_ranges, of_rounding, *_ = task.needs
    grid = task.ranges.estimate(matrix, task.codebook, task.granularity, statistics[of_ranges], layer.name)
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
    answer = task.rounding.solve(problem, generator_for(seed, layer.name))
    check_answer(answer, problem, task.rounding)
    end = time.perf_counter()
    dtype = task.codebook.dtype
    nearest = QuantizedWeight(layer, grid.quantize(matrix).to(dtype), grid)
    chosen = QuantizedWeight(layer, answer.codes.to(dtype), answer.grid or grid, answer.bias_shift)
    chosen = _corrected(graph, task, chosen, statistics)
    notes = [*_notes(task, matrix, statistics), answer.note]
    return Solved(nearest, chosen, "; ".join(filter(None, notes)), middle - start, end - middle)


def layer_report(
    task: LayerTask, matrix: Tensor, solved: Solved, error_nearest: float, error: float, note: str = ""
) -> LayerReport:
    """The record of a layer, with its errors as they were measured, NaN where they were not, and one more note."""
    granularity, ranges, rounding = task.words
    chosen = solved.chosen
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
