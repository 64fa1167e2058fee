"""Fit a layer to the original network's outputs, in the network whose earlier layers have lost channels.

1. Collect the moments of the layer's inputs x̂ in the network so far, and of its targets y in the original network:
of the channels that are left, and with what another branch lacks where the output is added to one.
2. Fit weights and bias by least squares, with more and with less shrinkage towards the weights that the layer has.
3. Take what is best on held-out samples; the weights that the layer has are one of the choices.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.compression_plan import CompressionPlan
from roundwise.engine.measuring import SHRINKAGE
from roundwise.engine.refitting import FloatWeight, held_out_note
from roundwise.engine.unit import generator_for
from roundwise.graph.unit import Unit
from roundwise.numerics.regression import Regression
from roundwise.report_compression import CompressionReport
from roundwise.statistics import Addend, Gram

STRENGTHS = (10.0, 1.0, 0.1, 0.01)
"""How much of the advised shrinkage fitted weights may have; held-out samples choose. The advice pulls them towards the
weights that a layer has, and these do not make up for the channels that are gone: less can be better. It takes
positions of a sample as independent, which they are not: more can be better too."""


@final
@dataclasses.dataclass(frozen=True, eq=False)
class FitTask:
    """A layer that is fitted to its new inputs.

    Attributes:
        unit: the layer, in the graph that is cut.
        plan: what is known of it.
    """

    unit: Unit
    plan: CompressionPlan

    @property
    def changes(self) -> bool:
        """True: the layer gets new weights."""
        return True

    @property
    def addend(self) -> fx.Node | None:
        """The branch that the output is added to: the layer makes up for its error too."""
        return self.unit.layer.addend

    def statistics(self, samples: int, seed: int) -> Gram:
        """Empty moments."""
        return Gram.empty(self.unit.layer.map, samples, generator_for(seed, f"{self.unit.name}: samples"))

    def collect(
        self, statistics: Gram, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the moments."""
        (pair,) = inputs
        if addend is None:
            statistics.add(pair.current, targets, samples)
        else:
            statistics.add_sum(pair.current, targets, samples, addend)

    def solve(self, statistics: Gram, seed: int) -> list[Fitted]:
        """Fit the weights and the bias; leave them where that is worse on held-out samples."""
        start, layer, graph = time.perf_counter(), self.unit.layer, self.unit.graph
        tensor = graph.constants[layer.weight]
        weight, bias = layer.map.to_matrix(tensor).double(), layer.map.bias_rows.double()
        before = FloatWeight(layer, tensor, layer.map.bias)
        moments = [Regression.of(statistics.fit, group) for group in range(len(weight))]
        found = [(_held_out_error(statistics, weight, bias), weight, bias)]
        if statistics.held_out.count:  # the weights that the layer has, with a new bias
            shift = torch.stack([one.bias(own) for one, own in zip(moments, weight, strict=True)])
            found.append((_held_out_error(statistics, weight, shift), weight, shift))
        for strength in STRENGTHS:
            shrunk = [
                one.shrunk(own, strength * one.shrinkage_strength(SHRINKAGE))
                for one, own in zip(moments, weight, strict=True)
            ]
            matrix = torch.stack([one.best() for one in shrunk])
            shift = torch.stack([one.bias(own) for one, own in zip(moments, matrix, strict=True)])
            found.append((_held_out_error(statistics, matrix, shift), matrix, shift))
        _, matrix, shift = min(found, key=lambda one: one[0]) if statistics.held_out.count else found[1]
        if shift is bias:
            fitted, note = before, "fitted weights were worse on held-out samples, so it has those that it had"
        else:
            note = held_out_note(self.plan, self.unit.name, statistics, matrix[0], shift[0])
            new = layer.map.to_weight(matrix).to(tensor.dtype), shift.flatten().to(tensor.dtype)
            fitted = FloatWeight(layer, *new)
        return [Fitted(self, fitted, before, note, time.perf_counter() - start)]

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the moments and for their decomposition, at most."""
        groups, rows, cols = self.unit.layer.map.matrix_shape
        return Gram.bytes_needed(self.unit.layer.map, samples, positions) + 8 * 4 * groups * cols * (cols + rows)

    def work(self, items_per_sample: int, samples: int) -> float:
        """Collecting moments is what takes time."""
        return Gram.forward_passes * samples * items_per_sample


def _held_out_error(statistics: Gram, matrix: Tensor, bias: Tensor) -> float:
    """The squared error on held-out samples, summed over the rows; 0 if there are none."""
    if not statistics.held_out.count:
        return 0.0
    groups = range(len(matrix))
    return sum(float(Regression.of(statistics.held_out, g).error(matrix[g], bias[g]).sum()) for g in groups)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The new weights of a layer.

    Attributes:
        task: what was solved.
        fitted: the new weights.
        before: the weights that the layer had for the channels that are left.
        note: for the report.
        duration: seconds.
    """

    task: FitTask
    fitted: FloatWeight
    before: FloatWeight
    note: str
    duration: float

    @property
    def weights(self) -> tuple[FloatWeight, ...]:
        """To go on with."""
        return (self.fitted,)

    @property
    def simpler(self) -> tuple[FloatWeight, ...]:
        """To compare with."""
        return (self.before,)

    @property
    def seconds(self) -> dict[str, float]:
        """Time by activity."""
        return {"fitting": self.duration}

    def report(self, error_simpler: float, error: float, note: str) -> CompressionReport:
        """The entry for the report."""
        notes = "; ".join(filter(None, (self.note, note)))
        return self.task.plan.report(self.task.unit.name, (error_simpler, error), self.duration, notes)
