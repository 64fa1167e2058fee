"""Fit the layers of a chain to the outputs of the layer that they replace, in the network whose earlier layers are cut.

The unit is the whole chain. Its inputs x̂ come from the network so far, and its targets y from the original network:
their moments are those that the layer itself would have, so the method chooses all layers of the chain together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.candidates import Candidate, Option, regression_for
from roundwise.engine.unit import generator_for
from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.transforms.factorize import Part
from roundwise.graph.unit import Unit
from roundwise.methods.compressing import Factorization, FactorizationProblem, Factorized
from roundwise.methods.compression import COMPRESSION_METHODS
from roundwise.numerics.regression import Regression
from roundwise.report_compression import CompressionReport
from roundwise.statistics import Addend, Gram
from roundwise.wording import error_in_words

WORSE_THAN_PREDICTED = 1.5
"""The report notes a layer that adds more than 1.5 times the predicted error on held-out samples."""


@final
@dataclass(frozen=True, eq=False)
class FloatWeight:
    """A new weight and bias of a layer.

    Attributes:
        layer: the layer.
        tensor: its weight, in any floating-point dtype.
        bias: its bias, in the dtype of the network; None if it has none.
    """

    layer: Layer
    tensor: Tensor
    bias: Tensor | None

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight in a dtype."""
        return self.tensor.to(dtype)


def answer_of(
    problem: FactorizationProblem, method: Factorization, option: Option, dtype: torch.dtype
) -> tuple[Factorized, Tensor]:
    """A method's answer, and the bias that is best with it, in the dtype of the network.

    Raises:
        RecipeError: the answer does not fit the layer.
    """
    answer = method.factorize(problem, option.size)
    wanted = [part.weight_shape for part in method.parts(problem.layer, option.size)]
    rows, cols = problem.regression.cross.shape
    found = [tuple(weight.shape) for weight in answer.weights]
    finite = all(bool(weight.isfinite().all()) for weight in (*answer.weights, answer.matrix))
    if found != wanted or answer.matrix.shape != (rows, cols) or not finite:
        raise RecipeError(
            f"{method!r} gave layer '{problem.name}' weights of the shapes {found} and a matrix "
            f"{list(answer.matrix.shape)}; they must be finite numbers of the shapes {wanted} and {[rows, cols]}. "
            "Correct its method `factorize`, or take another method for this layer."
        )
    return answer, problem.regression.bias(answer.matrix).to(dtype)


def parts_of(problem: FactorizationProblem, option: Option, dtype: torch.dtype) -> list[Part]:
    """The layers of a chain, with the weights that the method gives and the bias that is best with them.

    Raises:
        RecipeError: the method's answer does not fit the layer.
    """
    answer, bias = answer_of(problem, option.method, option, dtype)
    maps = list(option.method.parts(problem.layer, option.size))
    maps[-1] = replace(maps[-1], bias=bias)
    return [(part, weight.to(dtype)) for part, weight in zip(maps, answer.weights, strict=True)]


@final
@dataclass(frozen=True, eq=False)
class RefitTask:
    """A chain whose weights are fitted.

    Attributes:
        unit: the chain, in the graph that is cut.
        candidate: the layer that it replaces.
        option: the method and the size.
    """

    unit: Unit
    candidate: Candidate
    option: Option

    @property
    def changes(self) -> bool:
        """True: the chain gets new weights."""
        return True

    @property
    def addend(self) -> fx.Node | None:
        """None: the targets are the original layer's outputs."""
        return None

    def statistics(self, samples: int, seed: int) -> Gram:
        """Empty moments of the layer that the chain replaces."""
        layer = self.candidate.layer
        return Gram.empty(layer.map, samples, generator_for(seed, f"{layer.name}: samples"))

    def collect(
        self, statistics: Gram, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the moments."""
        (pair,) = inputs
        statistics.add(pair.current, targets, samples)

    def solve(self, statistics: Gram, seed: int) -> list[SolvedChain]:
        """Fit the chain."""
        start = time.perf_counter()
        candidate, graph = self.candidate, self.unit.graph
        dtype = graph.constants[self.unit.layers[0].weight].dtype
        regression = regression_for(statistics, candidate.weight)
        problem = FactorizationProblem(candidate.layer.name, candidate.layer.map, regression, candidate.metric)
        answer, bias = answer_of(problem, self.option.method, self.option, dtype)
        note = self._held_out_note(statistics, answer.matrix, bias.double())
        before = [FloatWeight(layer, graph.constants[layer.weight], layer.map.bias) for layer in self.unit.layers]
        return [
            SolvedChain(
                self, tuple(as_weights(self.unit, answer, bias)), tuple(before), note, time.perf_counter() - start
            )
        ]

    def _held_out_note(self, statistics: Gram, matrix: Tensor, bias: Tensor) -> str:
        """What to say if the chain adds far more error on held-out samples than was predicted; else nothing."""
        if not statistics.held_out.count:
            return ""
        held_out, candidate = Regression.of(statistics.held_out), self.candidate
        own_bias = candidate.layer.map.bias_rows[0].double()
        added = held_out.loss(matrix, bias, candidate.metric) - held_out.loss(
            candidate.weight, own_bias, candidate.metric
        )
        if not added > WORSE_THAN_PREDICTED * self.option.error:
            return ""
        return (
            f"on held-out samples it adds an error of {error_in_words(added)} to the network's outputs, where the "
            f"choice of sizes expected {error_in_words(self.option.error)}"
        )

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the moments and for decompositions of them, at most."""
        layer = self.candidate.layer
        _, rows, cols = layer.map.matrix_shape
        space = layer.node.meta["val"].shape[2:] if layer.map.dims else ()
        places = math.prod(int(size.node.hint) if isinstance(size, torch.SymInt) else size for size in space)
        return Gram.bytes_needed(layer.map, samples, places) + 8 * 6 * (cols + rows) ** 2

    def work(self, items_per_sample: int, samples: int) -> float:
        """Collecting moments is what takes time."""
        return Gram.forward_passes * samples * items_per_sample


def as_weights(unit: Unit, answer: Factorized, bias: Tensor) -> list[FloatWeight]:
    """A method's answer as weights of the layers of a chain; the last one has the bias."""
    last = unit.layers[-1]
    return [
        FloatWeight(layer, tensor, bias if layer is last else None)
        for layer, tensor in zip(unit.layers, answer.weights, strict=True)
    ]


@final
@dataclass(frozen=True, eq=False)
class SolvedChain:
    """The new weights of a chain.

    Attributes:
        task: what was solved.
        weights: of its layers.
        simpler: the factors of the original weights alone.
        note: for the report.
        duration: seconds.
    """

    task: RefitTask
    weights: tuple[FloatWeight, ...]
    simpler: tuple[FloatWeight, ...]
    note: str
    duration: float

    @property
    def seconds(self) -> dict[str, float]:
        """Time by activity."""
        return {"factors": self.duration}

    def report(self, error_simpler: float, error: float, note: str) -> CompressionReport:
        """The entry for the report."""
        notes = "; ".join(filter(None, (self.note, note)))
        return chain_report(self.task.candidate, self.task.option, (error_simpler, error), self.duration, notes)


def chain_report(
    candidate: Candidate, option: Option, errors: tuple[float, float], seconds: float, note: str = ""
) -> CompressionReport:
    """The report of a layer that was cut.

    Args:
        candidate, option: the layer and what it has become.
        errors: of its output, with factors of the weights alone and with the fitted ones; NaN if not measured.
        seconds: that it took.
        note: for the report.
    """
    return CompressionReport(
        name=candidate.layer.name,
        operation=candidate.layer.map.operation,
        shape=candidate.layer.map.weight_shape,
        method=method_name(option),
        size=option.size,
        macs=(candidate.cost.macs, option.cost.macs),
        parameters=(candidate.cost.parameters, option.cost.parameters),
        predicted=option.error,
        error_weights=errors[0],
        error=errors[1],
        seconds=seconds,
        note=note,
    )


def method_name(option: Option) -> str:
    """The name by which recipes know a method; the class of a user's own."""
    kind = type(option.method)
    return next((name for name, known in COMPRESSION_METHODS.items() if known is kind), kind.__name__)
