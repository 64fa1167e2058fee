"""One pass over the network, two streams.

Every operation runs once for the reference network (float) and once for the network that is already quantized up to
here, batch by batch, from one unit to the next; a tensor is dropped after its last use. So the cost is linear in depth,
and memory is what is alive between two units (the *frontier*), which is known before the run starts.

At each unit, in order:

    inputs x̂ (current stream) and targets y (reference stream)  ──▶  the statistics that the methods need
    (a solver may ask for the reference's inputs x instead; and where y is added to a shortcut r, for y + r − r̂)
    statistics  ──▶  grids, codes, biases (`engine/unit.py`)
    codes, biases  ──▶  the current stream goes on with the unit's output on these

Before anything is quantized the two streams are one and the same tensors; they are computed and kept once. The two
graphs need not be the same (`engine/schedule.py`): where the reference has no tensor to compare a unit's output with,
the target is what the unit's float weights give on its inputs x̂.

Tensors between operations can be watched (a statistic sees the current stream's values), and quantized: then all that
reads the tensor in the current stream reads what the quantizer leaves of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.engine.measure import distance, distance_by_rows, energy, ratio
from roundwise.engine.plan import rehearse
from roundwise.engine.schedule import Schedule, Segment, Step
from roundwise.engine.store import ActivationStore
from roundwise.engine.unit import Pair, Solved, UnitTask, layer_report
from roundwise.engine.values import Executor, Values, count, each, fetch
from roundwise.errors import ModelError
from roundwise.events import LayerFinished, LayerStarted, Planned, Progress
from roundwise.graph.graph import Graph, bind
from roundwise.graph.run import execute, fast_layout
from roundwise.graph.unit import Unit
from roundwise.numerics.quantizer import Quantizer
from roundwise.report import LayerReport
from roundwise.statistics import Addend, ValueStatistic

NEAREST_SAMPLES = 128
"""About how many samples nearest rounding's error is measured on, where there are twice as many or more."""

MAX_BRANCH_ERROR = 100
"""Ignore an addition when the other branch differs by more than this many times the energy of the layer's output: then
it is an attention mask (−∞), not a residual."""

COMPENSATES = (
    "this layer also compensates the error of the branch that its output is added to (addition_aware), so its own "
    "error can exceed that of nearest rounding"
)
"""The note on a layer whose solver was `addition_aware`."""


@final
@dataclass(frozen=True, eq=False)
class StreamResult:
    """What the pass found: codes and a report per layer, the error of the outputs, and where the time went."""

    weights: list[QuantizedWeight]
    reports: list[LayerReport]
    output_error: float
    seconds: dict[str, float]


@final
class Stream:
    """The pass over one graph. Make one, look at its `plan`, `run` it once."""

    def __init__(
        self,
        graph: Graph,
        batches: list[list[Any]],
        samples: int,
        tasks: Sequence[UnitTask],
        *,
        quantizers: Mapping[fx.Node, Quantizer] | None = None,
        watched: Mapping[fx.Node, ValueStatistic] | None = None,
        reference: Graph | None = None,
        counterparts: Mapping[str, str] | None = None,
        keeps_inputs: bool = False,
        seed: int,
        store: ActivationStore,
        progress: Progress | None = None,
    ) -> None:
        self._graph, self._store, self._seed, self._samples = graph, store, seed, samples
        self._progress: Progress = progress or (lambda _: None)
        self._quantizers, self._watched = quantizers or {}, watched or {}
        self._schedule = Schedule.of(
            graph,
            tasks,
            self._quantizers,
            reference=reference,
            counterparts=counterparts,
            keeps_inputs=keeps_inputs,
        )
        self._executor = Executor(self._schedule, store)
        self._seconds = {"forward": 0.0, "ranges": 0.0, "rounding": 0.0}
        self._batches: list[Values] = [
            {node: Pair(leaf, leaf) for node, leaf in zip(self._schedule.inputs, batch, strict=True)}
            for batch in batches
        ]
        self._counts = [count(values) for values in self._batches]
        self.plan, self._costs = rehearse(
            self._schedule, self._executor, store, self._batches[0], samples, self._quantizers
        )

    # ---------------------------------------------------------------------------------------------- the pass

    @torch.no_grad()
    def run(self) -> StreamResult:
        """Quantize every unit.

        Raises:
            ModelError: an activation is not finite.
            MemoryBudgetError: the disk is full.
        """
        self._progress(Planned(self.plan))
        weights: list[QuantizedWeight] = []
        reports: list[LayerReport] = []
        begin, total = time.perf_counter(), len(self._schedule.segments)
        for values in self._batches:
            for node in values.keys() & (self._quantizers.keys() | self._watched.keys()):
                values[node] = each(self._observed(node, values[node]), self._store.hold)
        for index, segment in enumerate(self._schedule.segments):
            self._progress(LayerStarted(segment.task.unit.name, index, total))
            for weight, report in self._quantize(segment):
                weights.append(weight)
                reports.append(report)
            elapsed, done = time.perf_counter() - begin, sum(self._costs[: index + 1])
            left = elapsed * (sum(self._costs) - done) / done if done else 0.0
            self._progress(LayerFinished(reports[-1], index, total, left))
        output_error = self._finish()
        self._seconds["forward"] = time.perf_counter() - begin - sum(self._seconds.values())
        return StreamResult(weights, reports, output_error, self._seconds)

    def _quantize(self, segment: Segment) -> list[tuple[QuantizedWeight, LayerReport]]:
        """Collect the unit's statistics, choose its codes, and let the current stream pass it."""
        task, unit = segment.task, segment.task.unit
        statistics: Any = task.statistics(self._samples, self._seed)
        total, compensates = 0.0, False
        for number, values in enumerate(self._batches):
            self._forward(segment.steps, values)
            target = self._target(unit, number, values)
            total += target
            self._executor.hold((*(step.key for step in segment.steps), unit.output), values)
            addend = self._addend(task, values, target)
            inputs = [values[node] for node in unit.inputs]
            task.show(statistics, inputs, values[unit.output].float, self._counts[number], addend)
            compensates |= addend is not None
        for step in segment.steps:
            self._executor.weights.pop(step.key, None)

        solved = task.solve(statistics, self._seed)
        del statistics
        for one in solved:
            self._seconds["ranges"] += one.seconds_ranges
            self._seconds["rounding"] += one.seconds_rounding
            dtype = self._graph.constants[one.chosen.layer.weight].dtype
            self._executor.weights.update(dict.fromkeys(one.chosen.layer.calls[1:], one.chosen.weight(dtype)))
        difference, difference_nearest = self._advance(unit, solved)
        errors, note = (ratio(difference_nearest, total), ratio(difference, total)), COMPENSATES if compensates else ""
        return [(one.chosen, layer_report(one, *errors, note)) for one in solved]

    def _addend(self, task: UnitTask, values: Values, target: float) -> Addend | None:
        """What the layer's output is added to, if its solver makes up for that and there is something to."""
        pair = None if task.addend is None else values.get(task.addend)
        if pair is None or pair.float is pair.quantized:
            return None
        error = distance(*each(pair, self._store.fetch))
        return Addend(*pair) if error <= MAX_BRANCH_ERROR * target else None  # not where it is NaN

    def _target(self, unit: Unit, number: int, values: Values) -> float:
        """The unit's output in the reference becomes a value; returns its energy Σ‖y‖²."""
        reference = self._schedule.counterpart(unit.output)
        if reference is None:  # nothing to compare with: what the float weights give on the inputs so far
            target = self._executor.unit_output(unit, values)
        else:
            inner = dict(values)
            for node in self._schedule.reference_nodes(unit):
                inner[self._schedule.key(node)] = Pair(self._executor.reference(node, inner), None)
            target = inner[unit.output].float
        size = energy(target)
        if not math.isfinite(size):
            raise ModelError(
                f"the float network gives NaN or infinite values at layer '{unit.name}' for samples in batch {number} "
                f"(of {len(self._batches)}), in {target.dtype}. Check these samples' preprocessing and the biases and "
                "batch-norms before the layer; where float16 is too narrow, quantize the model in float32 or bfloat16."
            )
        values[unit.output] = Pair(target, None)
        return size

    def _advance(self, unit: Unit, solved: Sequence[Solved]) -> tuple[float, float]:
        """Let the current stream pass the unit; returns Σ‖y − ŷ‖² with these weights, and with nearest ones.

        The latter is estimated on every n-th batch where there are many samples.
        """
        difference = compared = compared_nearest = 0.0
        constants = self._constants(one.chosen for one in solved)
        nearest = self._constants(one.nearest for one in solved)
        same = all(torch.equal(constants[node], nearest[node]) for node in constants)
        step = max(1, self._samples // NEAREST_SAMPLES)
        for number, values in enumerate(self._batches):
            target = fetch(values[unit.output].float, self._store)
            output = self._output(unit, values, constants)
            error = distance(output, target)
            difference += error
            if not same and number % step == 0:
                compared += error
                compared_nearest += self._distance(unit, values, nearest, target)
            passed = self._observed(unit.output, Pair(target, output)).quantized
            values[unit.output] = Pair(values[unit.output].float, self._store.hold(passed))
            for node in unit.nodes:
                self._executor.release(node, values)
        if not math.isfinite(difference):
            raise ModelError(
                f"layer '{unit.name}' gives finite values in the float network, but NaN or infinite ones with its "
                f"quantized weights: activations come too near to the end of {next(iter(constants.values())).dtype}. "
                "Use more bits, or quantize the model in float32 or bfloat16."
            )
        # By the ratio on the same samples, so that which of the two is better does not depend on which these are.
        return difference, difference * (compared_nearest / compared) if compared else difference + compared_nearest

    def _output(self, unit: Unit, values: Values, constants: Mapping[fx.Node, Tensor], *, watch: bool = True) -> Tensor:
        """The unit's output in the current stream with these weights and biases, before its own quantizer."""
        inner, output = dict(values), torch.empty(0)
        for node in unit.nodes:
            inputs = self._executor.current_inputs(node, inner)
            output = execute(node, {**inputs, **{it: constants[it] for it in inputs if it in constants}})
            if node is not unit.output:
                pair = Pair(None, output)
                inner[node] = self._observed(node, pair) if watch else self._quantized(node, pair)
        return output

    def _distance(self, unit: Unit, values: Values, constants: Mapping[fx.Node, Tensor], target: Tensor) -> float:
        """Σ‖y − ŷ‖² with other weights and biases; of a single layer a few rows at a time."""
        if len(unit.nodes) > 1:
            return distance(self._output(unit, values, constants, watch=False), target)
        layer, node = unit.layer, unit.output
        inputs = {**self._executor.current_inputs(node, values), **constants}
        return distance_by_rows(
            layer.map, lambda rows: execute(node, {**inputs, layer.input: rows}), inputs[layer.input], target
        )

    def _constants(self, weights: Iterable[QuantizedWeight]) -> dict[fx.Node, Tensor]:
        """Weights and biases as they are quantized, by the nodes that give them."""
        constants: dict[fx.Node, Tensor] = {}
        for quantized in weights:
            layer = quantized.layer
            weight, bias = layer.node.args[1], bind(layer.node)["bias"]
            assert isinstance(weight, fx.Node)
            constants[weight] = fast_layout(quantized.weight(self._graph.constants[layer.weight].dtype))
            if isinstance(bias, fx.Node) and quantized.bias is not None:
                constants[bias] = quantized.bias
        return constants

    def _finish(self) -> float:
        """The operations after the last unit; returns the relative error of everything that the network returns."""
        difference = total = 0.0
        for number, values in enumerate(self._batches):
            self._forward(self._schedule.tail, values)
            for reference, current in self._schedule.outputs:
                if current.op == "get_attr":
                    continue
                target = fetch(values[self._schedule.key(reference)].float, self._store)
                if not isinstance(target, Tensor) or not target.is_floating_point():
                    continue
                if target.isnan().any():
                    raise ModelError(
                        f"the float network's outputs contain NaN for samples in batch {number} (of "
                        f"{len(self._batches)}). Check these samples' preprocessing, or the network itself."
                    )
                finite = torch.isfinite(target)  # the −∞ of a mask has no error
                total += energy(target[finite])
                if current in self._schedule.tainted or current in self._quantizers:
                    output = fetch(values[current].quantized, self._store)
                    difference += distance(output[finite], target[finite])
            values.clear()
        if not math.isfinite(difference):
            raise ModelError(
                "the quantized network's outputs are NaN or infinite where the float network's are not. Use more bits, "
                "or quantize the model in float32 or bfloat16."
            )
        return ratio(difference, total)

    def _forward(self, steps: Iterable[Step], values: Values) -> None:
        """Run steps in both streams, or once where they agree."""
        for step in steps:
            tainted = step.current in self._schedule.tainted
            values[step.key] = self._observed(step.key, self._executor.run(step, values, tainted=tainted))
            self._executor.release(step.key, values)

    def _observed(self, node: fx.Node, pair: Pair) -> Pair:
        """What an operation gave in both streams, once the current one has been watched and quantized."""
        if node in self._watched:
            self._watched[node].add(self._store.fetch(pair.quantized))
        return self._quantized(node, pair)

    def _quantized(self, node: fx.Node, pair: Pair) -> Pair:
        quantizer, value = self._quantizers.get(node), pair.quantized
        return Pair(pair.float, value if quantizer is None else quantizer.fake_quantize(self._store.fetch(value)))
