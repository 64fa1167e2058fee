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
from jaxtyping import Float
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.candidates import Candidate, Option
from roundwise.engine.compression_plan import CompressionPlan
from roundwise.engine.measuring import SHRINKAGE
from roundwise.engine.unit import generator_for
from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.transforms.factorize import Part
from roundwise.graph.unit import Unit
from roundwise.methods.compressing import Factorization, FactorizationProblem, Factorized, Size
from roundwise.numerics.regression import Regression
from roundwise.report_compression import CompressionReport
from roundwise.statistics import Addend, Gram
from roundwise.wording import error_in_words

WORSE_THAN_PREDICTED = 1.5
"""The report notes a layer whose error on held-out samples is more than 1.5 times the predicted one."""

STRENGTHS = (30.0, 10.0, 1.0)
"""How much of the advised shrinkage factors may have; held-out samples choose. The advice takes positions of a sample
as independent, which they are not: more can be better."""


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
    problem: FactorizationProblem, method: Factorization, size: Size, dtype: torch.dtype
) -> tuple[Factorized, Tensor]:
    """A method's answer, and the bias that is best with it, in the dtype of the network.

    Raises:
        RecipeError: the answer does not fit the layer.
    """
    answer = method.factorize(problem, size)
    wanted = [part.weight_shape for part in method.parts(problem.layer, size)]
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
    answer, bias = answer_of(problem, option.method, option.size, dtype)
    maps = list(option.method.parts(problem.layer, option.size))
    maps[-1] = replace(maps[-1], bias=bias)
    return [(part, weight.to(dtype)) for part, weight in zip(maps, answer.weights, strict=True)]


@final
@dataclass(frozen=True, eq=False)
class RefitTask:
    """A chain whose weights are fitted.

    Attributes:
        unit: the chain, in the graph that is cut.
        plan: what is known of the layers.
        candidate: the layer that it replaces, with the channels that are left.
    """

    unit: Unit
    plan: CompressionPlan
    candidate: Candidate

    @property
    def changes(self) -> bool:
        """True: the chain gets new weights."""
        return True

    @property
    def addend(self) -> fx.Node | None:
        """The branch that the output is added to: the chain makes up for its error too."""
        return self.unit.layers[-1].addend

    def statistics(self, samples: int, seed: int) -> Gram:
        """Empty moments of the layer that the chain replaces."""
        layer = self.candidate.layer
        return Gram.empty(layer.map, samples, generator_for(seed, f"{layer.name}: samples"))

    def collect(
        self, statistics: Gram, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the moments."""
        (pair,) = inputs
        if addend is None:
            statistics.add(pair.current, targets, samples)
        else:
            statistics.add_sum(pair.current, targets, samples, addend)

    def solve(self, statistics: Gram, seed: int) -> list[SolvedChain]:
        """Fit the chain, with the shrinkage that is best on held-out samples."""
        start = time.perf_counter()
        candidate, graph = self.candidate, self.unit.graph
        dtype = graph.constants[self.unit.layers[0].weight].dtype
        option, moments = self.plan.chains[candidate.layer.name], Regression.of(statistics.fit)
        advised = moments.shrinkage_strength(SHRINKAGE)
        found: list[tuple[float, Factorized, Tensor]] = []
        for strength in STRENGTHS if statistics.held_out.count and advised else (1.0,):
            shrunk = moments.shrunk(candidate.weight, strength * advised)
            problem = FactorizationProblem(candidate.layer.name, candidate.layer.map, shrunk, candidate.metric)
            answer, bias = answer_of(problem, option.method, option.size, dtype)
            found.append((self._loss(statistics, answer.matrix, bias), answer, bias))
        _, answer, bias = min(found, key=lambda one: one[0])
        note = held_out_note(self.plan, candidate.layer.name, statistics, answer.matrix, bias.double())
        before = [FloatWeight(layer, graph.constants[layer.weight], layer.map.bias) for layer in self.unit.layers]
        return [
            SolvedChain(
                self, tuple(as_weights(self.unit, answer, bias)), tuple(before), note, time.perf_counter() - start
            )
        ]

    def _loss(self, statistics: Gram, matrix: Tensor, bias: Tensor) -> float:
        """The error on held-out samples, less a constant; 0 if there are none."""
        if not statistics.held_out.count:
            return 0.0
        return Regression.of(statistics.held_out).loss(matrix, bias.double(), self.candidate.metric)

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


def held_out_note(
    plan: CompressionPlan,
    name: str,
    statistics: Gram,
    matrix: Float[Tensor, "rows cols"],
    bias: Float[Tensor, "rows"],
) -> str:
    """What to say of a layer that was cut if its error is far larger on held-out samples than was predicted.

    Its output has the errors of the layers before it too, so these are predicted as well.
    """
    if not statistics.held_out.count or name not in plan.expected:
        return ""
    metric, expected = plan.metrics[name].diagonal(), plan.expected_so_far[name]
    held_out, seen = (
        float((metric * Regression.of(moments).error(matrix, bias)).sum())
        for moments in (statistics.held_out, statistics.fit)
    )
    if not held_out > WORSE_THAN_PREDICTED * expected:
        return ""
    return (
        f"on held-out samples its error is {error_in_words(held_out)} of the network's outputs, where the choice of "
        f"sizes expected {error_in_words(expected)} of this layer and those before it; on the samples that it was "
        f"fitted to it is {error_in_words(seen)}"
    )


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
        return self.task.plan.report(self.task.unit.name, (error_simpler, error), self.duration, notes)
