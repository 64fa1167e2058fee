"""One pass over the network with two streams of activations: the reference stream and the current stream.

The *reference stream* holds the activations of the float network. The *current stream* holds the activations of the
network so far, whose earlier units already have their new weights: quantized, or factors of the old ones. Both go
through the network together, from one unit to the next; at each unit:

    1. Run the operations before the unit in both streams, for every batch.
    2. Collect the statistics that the unit's methods need, from its inputs x̂ (current stream) and its targets y
       (reference stream).
    3. Choose weights from the statistics: codes (`engine/unit.py`) or other floats (`engine/refitting.py`).
    4. Run the unit with these weights in the current stream, and measure its error.

A solver may ask for the reference's inputs x instead of x̂; and if the unit's output is added to another branch r, for
the targets y + r − r̂.

Each operation runs once per stream and batch, and a tensor is freed after its last use. So the cost is linear in depth,
and memory is what is alive between two units (the *frontier*), which is known before the run starts. As long as nothing
is quantized, the two streams are equal: their tensors are computed and held once.

The two graphs may differ (`engine/schedule.py`). If the reference has no tensor to compare a unit's output with, the
target is the output of the unit's float weights on its inputs x̂.

An *observer* is a statistic that collects the values of one activation in the current stream. If an activation has a
quantizer, the operations that read it in the current stream get its fake-quantized value.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.engine.answers import ChosenWeight, Solved, StreamPair, UnitTask
from roundwise.engine.distance_by_items import distance_by_items
from roundwise.engine.plan import forecast
from roundwise.engine.schedule import Schedule, Segment, Step
from roundwise.engine.store import ActivationStore
from roundwise.engine.values import Executor, Values, count, each, fetch
from roundwise.errors import ModelError
from roundwise.events import LayerFinished, LayerStarted, Planned, Progress
from roundwise.graph.graph import Graph, bind
from roundwise.graph.leaves import leaf_paths, output_name
from roundwise.graph.run import execute, fast_layout
from roundwise.graph.unit import Unit
from roundwise.numerics.output_error import ErrorSums, as_tensor
from roundwise.numerics.quantizer import Quantizer
from roundwise.numerics.squares import distance, energy, relative_error
from roundwise.report import LayerReport, OutputReport, worst_error
from roundwise.report_compression import CompressionReport
from roundwise.statistics import Addend, ValueStatistic

W = TypeVar("W", bound=ChosenWeight)
R = TypeVar("R", bound=LayerReport | CompressionReport)

SIMPLER_SAMPLES = 128
"""If there are 256 samples or more, measure the error of the simpler weights (for codes, of nearest rounding) on at
least 128 of them, not on all. A larger number makes that error more exact and the run slower; weights do not depend on
it."""

MAX_BRANCH_ERROR = 100
"""Ignore an addition if the squared error of the other branch is more than 100 times the energy of the layer's output:
then the branch is an attention mask (−∞), not a residual."""

COMPENSATES = (
    "this layer also compensates for the error of the branch that its output is added to (addition_aware), so its own "
    "error can be larger than that of nearest rounding"
)
"""The note on a layer whose targets were y + r − r̂."""


@final
@dataclass(frozen=True, eq=False)
class StreamResult(Generic[W, R]):
    """The result of a pass.

    Attributes:
        weights, reports: the weight and the report of each layer.
        outputs: the error of each output that was measured.
        seconds: time by activity.
        notes: which outputs were not measured.
    """

    weights: list[W]
    reports: list[R]
    outputs: tuple[OutputReport, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def output_error(self) -> float:
        """The error of the output that is furthest from the reference; NaN if none was measured."""
        return worst_error(self.outputs) if self.outputs else math.nan


@final
class Stream(Generic[W, R]):
    """One pass over a graph. `plan` is its forecast; `run` it once."""

    def __init__(
        self,
        graph: Graph,
        batches: list[list[Any]],
        samples: int,
        tasks: Sequence[UnitTask[W, R]],
        *,
        quantizers: Mapping[fx.Node, Quantizer] | None = None,
        observers: Mapping[fx.Node, ValueStatistic] | None = None,
        reference: Graph | None = None,
        counterparts: Mapping[str, str] | None = None,
        keeps_inputs: bool = False,
        seed: int,
        store: ActivationStore,
        progress: Progress | None = None,
    ) -> None:
        self._graph, self._store, self._seed, self._samples = graph, store, seed, samples
        self._progress: Progress = progress or (lambda _: None)
        self._quantizers, self._observers = quantizers or {}, observers or {}
        self._schedule = Schedule.of(
            graph,
            tasks,
            self._quantizers,
            reference=reference,
            counterparts=counterparts,
            keeps_inputs=keeps_inputs,
        )
        self._executor = Executor(self._schedule, store)
        self._seconds = {"forward": 0.0}
        self._batches: list[Values] = [
            {node: StreamPair(leaf, leaf) for node, leaf in zip(self._schedule.inputs, batch, strict=True)}
            for batch in batches
        ]
        self._counts = [count(values) for values in self._batches]
        self.plan, self._costs = forecast(
            self._schedule, self._executor, store, self._batches[0], samples, self._quantizers
        )

    # ---------------------------------------------------------------------------------------------- the pass

    @torch.no_grad()
    def run(self) -> StreamResult[W, R]:
        """Solve every unit.

        Raises:
            ModelError: an activation is NaN or infinite, or a unit's tensors differ in shape between the two streams.
            MemoryBudgetError: the disk is full.
        """
        self._progress(Planned(self.plan))
        weights: list[W] = []
        reports: list[R] = []
        begin, total = time.perf_counter(), len(self._schedule.segments)
        for values in self._batches:
            for node in values.keys() & (self._quantizers.keys() | self._observers.keys()):
                values[node] = each(self._observe_and_quantize(node, values[node]), self._store.hold)
        for index, segment in enumerate(self._schedule.segments):
            self._progress(LayerStarted(segment.task.unit.name, index, total))
            new_weights, new_reports = self._solve_unit(segment)
            weights += new_weights
            reports += new_reports
            elapsed, done = time.perf_counter() - begin, sum(self._costs[: index + 1])
            left = elapsed * (sum(self._costs) - done) / done if done else 0.0
            if new_reports:
                self._progress(LayerFinished(new_reports[-1], index, total, left))
        outputs, notes = self._finish()
        self._seconds["forward"] = time.perf_counter() - begin - sum(self._seconds.values())
        return StreamResult(weights, reports, outputs, self._seconds, notes)

    def _solve_unit(self, segment: Segment) -> tuple[list[W], list[R]]:
        """Collect the unit's statistics, choose its weights, and run it with them in the current stream."""
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
            for pair in inputs:
                _check_shape(unit, "input", pair.reference, pair.current)
            task.collect(statistics, inputs, values[unit.output].reference, self._counts[number], addend)
            compensates |= addend is not None
        for step in segment.steps:
            self._executor.weights.pop(step.key, None)

        solved = task.solve(statistics, self._seed)
        del statistics
        if not task.changes:
            self._go_on(unit)
            return [], []
        weights = [weight for one in solved for weight in one.weights]
        for one in solved:
            for activity, seconds in one.seconds.items():
                self._seconds[activity] = self._seconds.get(activity, 0.0) + seconds
        for weight in weights:
            dtype = self._graph.constants[weight.layer.weight].dtype
            self._executor.weights.update(dict.fromkeys(weight.layer.calls[1:], weight.weight(dtype)))
        difference, difference_simpler = self._advance(unit, solved)
        errors = relative_error(difference_simpler, total), relative_error(difference, total)
        return weights, [one.report(*errors, COMPENSATES if compensates else "") for one in solved]

    def _go_on(self, unit: Unit) -> None:
        """Leave a unit behind whose weights stay: if nothing before it differs, neither do the streams after it."""
        for values in self._batches:
            target = values[unit.output].reference
            differs = unit.output in self._schedule.differing
            current = self._store.hold(self._executor.unit_output(unit, values)) if differs else target
            values[unit.output] = StreamPair(target, current)
            for node in unit.nodes:
                self._executor.release(node, values)

    def _addend(self, task: UnitTask[W, R], values: Values, target: float) -> Addend | None:
        """The other branch of the addition after the unit, if the solver is `addition_aware` and the branch differs."""
        pair = None if task.addend is None else values.get(task.addend)
        if pair is None or pair.reference is pair.current:
            return None
        error = distance(*each(pair, self._store.fetch))
        return Addend(*pair) if error <= MAX_BRANCH_ERROR * target else None  # None also if the error is NaN

    def _target(self, unit: Unit, number: int, values: Values) -> float:
        """Compute the unit's target y, its output in the reference; return its energy Σ‖y‖²."""
        reference = self._schedule.counterpart(unit.output)
        if reference is None:  # the reference has no such tensor: take the output of the float weights
            target = self._executor.unit_output(unit, values)
        else:
            inner = dict(values)
            for node in self._schedule.reference_nodes(unit):
                inner[self._schedule.key(node)] = StreamPair(self._executor.reference(node, inner), None)
            target = inner[unit.output].reference
        size = energy(target)
        if not math.isfinite(size):
            raise ModelError(
                f"the float network gives NaN or infinite values at layer '{unit.name}' for samples in batch {number} "
                f"(of {len(self._batches)}), in {target.dtype}. Check these samples' preprocessing, and the biases and "
                "batch-norms before the layer. If values overflow float16, quantize the model in float32 or bfloat16."
            )
        values[unit.output] = StreamPair(target, None)
        return size

    def _advance(self, unit: Unit, solved: Sequence[Solved[W, R]]) -> tuple[float, float]:
        """Run the unit in the current stream; return Σ‖y − ŷ‖² with its chosen weights, and with the simpler ones.

        If there are many samples, the second error is estimated from every n-th batch.
        """
        difference = compared = compared_simpler = 0.0
        constants = self._constants(weight for one in solved for weight in one.weights)
        simpler = self._constants(weight for one in solved for weight in one.simpler)
        same = all(torch.equal(constants[node], simpler[node]) for node in constants)
        every = max(1, self._samples // SIMPLER_SAMPLES)
        for number, values in enumerate(self._batches):
            target = fetch(values[unit.output].reference, self._store)
            output = self._output(unit, values, constants)
            _check_shape(unit, "output", target, output)
            error = distance(output, target)
            difference += error
            if not same and number % every == 0:
                compared += error
                compared_simpler += self._distance(unit, values, simpler, target)
            current = self._observe_and_quantize(unit.output, StreamPair(target, output)).current
            values[unit.output] = StreamPair(values[unit.output].reference, self._store.hold(current))
            for node in unit.nodes:
                self._executor.release(node, values)
        if not math.isfinite(difference):
            raise ModelError(
                f"layer '{unit.name}' gives finite values in the float network, but NaN or infinite values with its "
                f"new weights: activations overflow {next(iter(constants.values())).dtype}. Use more bits, or "
                "give the model in float32 or bfloat16."
            )
        # Scale by the ratio on the same samples: which of the two is better then does not depend on the samples drawn.
        return difference, difference * (compared_simpler / compared) if compared else difference + compared_simpler

    def _output(
        self, unit: Unit, values: Values, constants: Mapping[fx.Node, Tensor], *, observe: bool = True
    ) -> Tensor:
        """The unit's output in the current stream with these weights and biases, before the output's quantizer."""
        inner, output = dict(values), torch.empty(0)
        for node in unit.nodes:
            inputs = self._executor.current_inputs(node, inner)
            output = execute(node, {**inputs, **{it: constants[it] for it in inputs if it in constants}})
            if node is not unit.output:
                pair = StreamPair(None, output)
                inner[node] = self._observe_and_quantize(node, pair) if observe else self._fake_quantized(node, pair)
        return output

    def _distance(self, unit: Unit, values: Values, constants: Mapping[fx.Node, Tensor], target: Tensor) -> float:
        """Σ‖y − ŷ‖² with these weights and biases; for a single layer, a few items at a time."""
        if len(unit.nodes) > 1:
            return distance(self._output(unit, values, constants, observe=False), target)
        layer, node = unit.layer, unit.output
        inputs = {**self._executor.current_inputs(node, values), **constants}
        return distance_by_items(
            layer.map, lambda items: execute(node, {**inputs, layer.input: items}), inputs[layer.input], target
        )

    def _constants(self, weights: Iterable[ChosenWeight]) -> dict[fx.Node, Tensor]:
        """The chosen weights and biases, by the nodes that hold those of before."""
        constants: dict[fx.Node, Tensor] = {}
        for chosen in weights:
            layer = chosen.layer
            weight, bias = layer.node.args[1], bind(layer.node)["bias"]
            assert isinstance(weight, fx.Node)
            constants[weight] = fast_layout(chosen.weight(self._graph.constants[layer.weight].dtype))
            if isinstance(bias, fx.Node) and chosen.bias is not None:
                constants[bias] = chosen.bias
        return constants

    def _finish(self) -> tuple[tuple[OutputReport, ...], tuple[str, ...]]:
        """Run the operations after the last unit; return the errors of the network's outputs, and notes about them.

        An output whose shape is not the same in both networks, because it depends on values, is left out.
        """
        names = _output_names(self._schedule.graph)
        sums = {current: ErrorSums() for _, current in self._schedule.outputs if current.op != "get_attr"}
        masked: set[fx.Node] = set()  # outputs to which the float network gives infinite values
        apart: dict[fx.Node, str] = {}  # outputs with two shapes
        for number, values in enumerate(self._batches):
            self._forward(self._schedule.tail, values)
            for reference, current in self._schedule.outputs:
                if current not in sums:
                    continue
                target = as_tensor(fetch(values[self._schedule.key(reference)].reference, self._store))
                output = as_tensor(fetch(values[current].current, self._store))
                if target is None or output is None:  # such as a size of the input
                    continue
                if target.isnan().any():
                    raise ModelError(
                        f"the float network's outputs contain NaN for samples in batch {number} (of "
                        f"{len(self._batches)}). Check these samples' preprocessing, or the network itself."
                    )
                if output.shape != target.shape:
                    apart.setdefault(current, f"{list(target.shape)} and {list(output.shape)}")
                    continue
                if target.isinf().any():
                    masked.add(current)
                sums[current].add(output, target)
                if output.isnan().any():
                    raise _overflow(f"{int(output.isnan().sum())} NaN in the output '{names[current]}'")
            values.clear()
        errors = {node: one.result() for node, one in sums.items() if node not in apart}
        for node, found in errors.items():
            if found.apart and node not in masked:
                raise _overflow(f"{found.apart} infinite values in the output '{names[node]}'")
        notes = tuple(
            f"the error of the output '{names[node]}' (of {len(sums)}) was not measured: its shape depends on values, "
            f"and is {shapes} in a batch of the float and of the quantized network"
            for node, shapes in apart.items()
        )
        reports = (OutputReport(names[node], one.error, one.whole, one.note) for node, one in errors.items())
        return tuple(reports), notes

    def _forward(self, steps: Iterable[Step], values: Values) -> None:
        """Run steps in both streams, or once if the streams do not differ."""
        for step in steps:
            differing = step.current in self._schedule.differing
            pair = self._executor.run(step, values, differing=differing)
            values[step.key] = self._observe_and_quantize(step.key, pair)
            self._executor.release(step.key, values)

    def _observe_and_quantize(self, node: fx.Node, pair: StreamPair) -> StreamPair:
        """The values of one operation, after its observer has seen and its quantizer has changed the current one."""
        if node in self._observers:
            self._observers[node].add(self._store.fetch(pair.current))
        return self._fake_quantized(node, pair)

    def _fake_quantized(self, node: fx.Node, pair: StreamPair) -> StreamPair:
        quantizer = self._quantizers.get(node)
        if quantizer is None:
            return pair
        return StreamPair(pair.reference, quantizer.fake_quantize(self._store.fetch(pair.current)))


def _output_names(graph: Graph) -> dict[fx.Node, str]:
    """The name of each output, by the operation or input that gives it."""
    leaves = pytree.tree_leaves(_result(graph))
    names: dict[fx.Node, str] = {}
    for leaf, name in zip(leaves, output_names(graph), strict=True):
        if isinstance(leaf, fx.Node):
            names.setdefault(leaf, name)
    return names


def output_names(graph: Graph) -> list[str]:
    """The name of each output, in order."""
    result = _result(graph)
    spec = graph.structure.out_spec
    paths = leaf_paths(result if spec is None else pytree.tree_unflatten(pytree.tree_leaves(result), spec))
    return [output_name(path) for path in paths]


def _result(graph: Graph) -> Any:
    return next(node for node in graph.operations.nodes if node.op == "output").args[0]


def _overflow(found: str) -> ModelError:
    return ModelError(
        f"the quantized network gives {found} where the float network gives finite numbers. Use more bits, or quantize "
        "the model in float32 or bfloat16."
    )


def _check_shape(unit: Unit, what: str, reference: Any, current: Any) -> None:
    """Raise if an input or output of a unit has other shapes in the two streams: nothing can be compared then."""
    both = isinstance(reference, Tensor) and isinstance(current, Tensor)
    if both and reference.shape != current.shape:
        name = unit.name
        raise ModelError(
            f"layer '{name}': its {what} has the shape {list(reference.shape)} in the float network and "
            f"{list(current.shape)} in the quantized one, because the shape depends on values, as behind a mask. So "
            f"there is no output to compare with. Quantize the part of the model before '{name}' alone, or keep "
            f"'{name}' and the layers after it in float (--override {name}=float, or overrides={{'{name}': None}})."
        )
