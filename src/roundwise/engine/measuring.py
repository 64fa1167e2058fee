"""Measure the layers of a network for what compression wants to know of them, in one pass over the samples.

1. Estimate how much the network's output feels each layer (`engine/sensitivity.py`).
2. Collect the moments of each layer's inputs and outputs, and hand them to those who asked for them.

Without samples, the output is taken to feel all layers alike, and inputs are white.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.run import Run
from roundwise.engine.sensitivity import output_metrics
from roundwise.engine.stream import Stream
from roundwise.engine.unit import generator_for
from roundwise.events import PassStarted
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.graph.unit import Unit
from roundwise.numerics.regression import Regression
from roundwise.statistics import Addend, Gram

SHRINKAGE = 1.0
"""How far moments of few samples are pulled towards white inputs, as a multiple of what statistics theory advises. A
larger number keeps factors nearer to those of the weights alone."""


class Measured(Protocol):
    """Who wants to know about layers."""

    @property
    def layers(self) -> Sequence[Layer]:
        """Which layers: with one group and one call."""

    @property
    def subject(self) -> str:
        """What is measured, such as "3 layers"; for people who watch the run."""

    def take(self, layer: Layer, regression: Regression, metric: Float[Tensor, "rows rows"]) -> None:
        """Take the moments of a layer, and S: how much the network's output feels its errors."""


def measure(graph: Graph, wanted: Sequence[Measured], run: Run) -> dict[str, Float[Tensor, "rows rows"]]:
    """Hand each one the moments of its layers, in the order in which they run; return S of each layer by its name.

    Raises:
        ModelError: outputs of layers are not finite.
        MemoryBudgetError: the disk is full.
    """
    layers = {layer.name: layer for one in wanted for layer in one.layers}
    metrics: dict[str, Tensor] = {}
    if run.has_data and layers:
        assert run.calibration is not None
        subject = " and ".join(one.subject for one in wanted if one.layers)
        run.progress(PassStarted(f"measuring what {subject} could become"))
        generator = generator_for(run.seed, "sensitivity")
        metrics = output_metrics(graph, list(layers.values()), run.calibration, run.device, generator)
        tasks = [_MeasureTask(Unit.of_layer(graph, layer), wanted, metrics[layer.name]) for layer in layers.values()]
        batches = list(run.calibration.batches)
        Stream(graph, batches, run.samples, tasks, keeps_inputs=True, seed=run.seed, store=run.store).run()
    else:
        for layer in layers.values():
            weight = matrix_of(graph, layer)
            energy = float(weight.square().sum()) or 1.0
            metrics[layer.name] = torch.eye(len(weight), dtype=torch.float64, device=weight.device) / energy
            _hand_out(wanted, layer, Regression.white(weight, layer.map.bias_rows[0]), metrics[layer.name])
    return metrics


def matrix_of(graph: Graph, layer: Layer) -> Float[Tensor, "rows cols"]:
    """The matrix of a layer with one group, in float64."""
    return layer.map.to_matrix(graph.constants[layer.weight])[0].double()


def regression_for(statistics: Gram, weight: Float[Tensor, "rows cols"]) -> Regression:
    """The moments that a method works from, shrunk as the number of samples demands."""
    regression = Regression.of(statistics.fit)
    return regression.shrunk(weight, regression.shrinkage_strength(SHRINKAGE))


def _hand_out(wanted: Sequence[Measured], layer: Layer, regression: Regression, metric: Tensor) -> None:
    for one in wanted:
        if any(other.name == layer.name for other in one.layers):
            one.take(layer, regression, metric)


@final
@dataclass(frozen=True, eq=False)
class _MeasureTask:
    """A layer whose moments are collected. The stream has it solve, which hands the moments on.

    Attributes:
        unit: the layer.
        wanted: who may want to know about it.
        metric: S.
    """

    unit: Unit
    wanted: Sequence[Measured]
    metric: Float[Tensor, "rows rows"]

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
        """Hand the moments on; no weights change."""
        layer = self.unit.layer
        regression = regression_for(statistics, matrix_of(self.unit.graph, layer))
        _hand_out(self.wanted, layer, regression, self.metric)
        return []

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the moments and for decompositions of them, at most."""
        _, rows, cols = self.unit.layer.map.matrix_shape
        return Gram.bytes_needed(self.unit.layer.map, samples, positions) + 8 * 6 * (cols + rows) ** 2

    def work(self, items_per_sample: int, samples: int) -> float:
        """Collecting moments is what takes time."""
        return Gram.forward_passes * samples * items_per_sample
