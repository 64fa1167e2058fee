"""One pass over the network, two streams.

Every operation runs once for the float network and once for the network that is already quantized up to here, batch by
batch, from one layer to the next; a tensor is dropped after its last use. So the cost is linear in depth, and memory is
what is alive between two layers (the *frontier*), which is known before the run starts.

At each layer, in order:

    inputs x̂ (quantized stream) and targets y (float stream)  ──▶  the statistics that the methods need
    (a solver may ask for the float stream's inputs x instead; and where y is added to a shortcut r, for y + r − r̂)
    statistics  ──▶  grid, codes, bias (`engine/unit.py`)
    codes, bias  ──▶  the quantized stream goes on with the layer's output on these

Before anything is quantized the two streams are one and the same tensors; they are computed and kept once.

Tensors between operations can be watched (a statistic sees the quantized stream's values), and quantized: then all that
reads the tensor in the quantized stream reads what the quantizer leaves of it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.engine.store import ActivationStore, held_bytes
from roundwise.engine.unit import LayerTask, Statistics, layer_report, solve_layer
from roundwise.errors import ModelError
from roundwise.events import LayerFinished, LayerStarted, Plan, Planned, Progress
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph, bind
from roundwise.graph.transforms.normalize import WEIGHTED
from roundwise.methods.interfaces import estimated_work
from roundwise.numerics.quantizer import Quantizer
from roundwise.report import LayerReport
from roundwise.statistics import Addend, ValueStatistic

aten = torch.ops.aten

SLICE = 1 << 18
"""Numbers in one slice of an activation: a mebibyte of them, which stays in a processor's cache."""

OUTPUT_SLICE = 1 << 22
"""Numbers of an output that is computed only to be measured."""

NEAREST_SAMPLES = 128
"""About how many samples nearest rounding's error is measured on, where there are twice as many or more."""

ON_ACCELERATOR = 64
"""Times as many of both on anything but a CPU, where an operation's start costs more than its work."""


MAKES_UP = "targets make up for the error of the branch added to the output, so the layer's own error may be larger"
"""The note on a layer whose solver was `addition_aware`."""

LACKS_AT_MOST = 100
"""Times the energy of the layer's output: a branch that differs by more, or by infinity, is a mask and no sum."""


class Pair(NamedTuple):
    """One thing in both streams; the same object where they agree."""

    float: Any
    quantized: Any


Values = dict[fx.Node, Pair]
"""One batch: everything that operations gave and that is still needed."""


@final
@dataclass(frozen=True, eq=False)
class StreamResult:
    """What the pass found: codes and a report per layer, the error of the outputs, and where the time went."""

    weights: list[QuantizedWeight]
    reports: list[LayerReport]
    output_error: float
    seconds: dict[str, float]


@final
@dataclass(frozen=True, eq=False)
class _Segment:
    """A layer that will be quantized, and the operations between the one before and it."""

    nodes: list[fx.Node]
    task: LayerTask


@final
class Stream:
    """The pass over one graph. Make one, look at its `plan`, `run` it once."""

    def __init__(
        self,
        graph: Graph,
        batches: list[list[Any]],
        samples: int,
        tasks: Sequence[LayerTask],
        *,
        quantizers: Mapping[fx.Node, Quantizer] | None = None,
        watched: Mapping[fx.Node, ValueStatistic] | None = None,
        keeps_inputs: bool = False,
        seed: int,
        store: ActivationStore,
        progress: Progress | None = None,
    ) -> None:
        self._graph, self._store, self._seed, self._samples = graph, store, seed, samples
        self._progress: Progress = progress or (lambda _: None)
        order = _order(graph, tasks)
        self._segments, self._tail = _segments(order, tasks)
        self._last_use = _last_uses(order, but_for="placeholder" if keeps_inputs else None)
        self._quantizers, self._watched = quantizers or {}, watched or {}
        self._tainted = _tainted(graph, [call for task in tasks for call in task.layer.calls], self._quantizers)
        self._weights: dict[fx.Node, Tensor] = {}  # what later calls of a quantized layer compute with
        self._seconds = {"forward": 0.0, "ranges": 0.0, "rounding": 0.0}
        placeholders = [node for node in graph.operations.nodes if node.op == "placeholder"]
        self._batches: list[Values] = [
            {node: Pair(leaf, leaf) for node, leaf in zip(placeholders, batch, strict=True)} for batch in batches
        ]
        self._counts = [_count(values) for values in self._batches]
        self.plan, self._costs = self._rehearse()

    # ---------------------------------------------------------------------------------------------- the pass

    @torch.no_grad()
    def run(self) -> StreamResult:
        """Quantize every layer.

        Raises:
            ModelError: an activation is not finite.
            MemoryBudgetError: the disk is full.
        """
        self._progress(Planned(self.plan))
        weights: list[QuantizedWeight] = []
        reports: list[LayerReport] = []
        begin, total = time.perf_counter(), len(self._segments)
        for values in self._batches:
            for node in values.keys() & (self._quantizers.keys() | self._watched.keys()):
                values[node] = _each(self._passed(node, *values[node]), self._store.hold)
        for index, segment in enumerate(self._segments):
            self._progress(LayerStarted(segment.task.layer.name, index, total))
            weight, report = self._quantize(segment)
            weights.append(weight)
            reports.append(report)
            elapsed, done = time.perf_counter() - begin, sum(self._costs[: index + 1])
            left = elapsed * (sum(self._costs) - done) / done if done else 0.0
            self._progress(LayerFinished(report, index, total, left))
        output_error = self._finish()
        self._seconds["forward"] = time.perf_counter() - begin - sum(self._seconds.values())
        return StreamResult(weights, reports, output_error, self._seconds)

    def _quantize(self, segment: _Segment) -> tuple[QuantizedWeight, LayerReport]:
        """Collect the layer's statistics, choose its codes, and let the quantized stream pass it."""
        task, layer = segment.task, segment.task.layer
        statistics = task.statistics(self._samples, self._seed)
        energy, made_up = 0.0, False
        for number, values in enumerate(self._batches):
            self._forward(segment.nodes, values)
            squares = self._measure_target(layer, number, values)
            energy += squares
            self._hold((*segment.nodes, layer.node), values)
            made_up |= self._show(task, statistics, number, squares)
        for node in segment.nodes:
            self._weights.pop(node, None)

        source = self._graph.constants[layer.weight]
        matrix = layer.map.to_matrix(source).float()
        solved = solve_layer(self._graph, task, matrix, statistics, self._seed)
        self._seconds["ranges"] += solved.seconds_ranges
        self._seconds["rounding"] += solved.seconds_rounding
        del statistics

        self._weights.update(dict.fromkeys(layer.calls[1:], solved.chosen.weight(source.dtype)))
        difference, difference_nearest = self._cross(layer, solved.chosen, solved.nearest)
        errors = _ratio(difference_nearest, energy), _ratio(difference, energy)
        return solved.chosen, layer_report(task, matrix, solved, *errors, MAKES_UP if made_up else "")

    def _show(self, task: LayerTask, statistics: Statistics, number: int, energy: float) -> bool:
        """Let a layer's statistics see one batch; returns whether their targets make up for an addend."""
        values, samples = self._batches[number], self._counts[number]
        pair, target = values[task.layer.input], values[task.layer.node].float
        addend = self._addend(task, values, energy)
        for need, statistic in statistics.items():
            inputs = pair.float if need.float_inputs else pair.quantized
            if addend is not None and need.addition_aware:
                statistic.add_sum(inputs, target, samples, addend)
            else:
                statistic.add(inputs, target, samples)
        return addend is not None

    def _addend(self, task: LayerTask, values: Values, energy: float) -> Addend | None:
        """What the layer's output is added to, if its solver makes up for that and there is something to."""
        pair = None if task.addend is None else values.get(task.addend)
        if pair is None or pair.float is pair.quantized:
            return None
        lacks = _distance(*_each(pair, self._store.fetch))
        return Addend(*pair) if lacks <= LACKS_AT_MOST * energy else None  # not where it is NaN

    def _measure_target(self, layer: Layer, number: int, values: Values) -> float:
        """The layer's output in the float stream becomes a value; returns its energy Σ‖y‖²."""
        target = _execute(layer.node, self._fetch(layer.node, values).float)
        energy = _squares(target)
        if not math.isfinite(energy):
            raise ModelError(
                f"the float network gives NaN or infinite values at layer '{layer.name}' for samples in batch {number} "
                f"(of {len(self._batches)}), in {target.dtype}. Check these samples' preprocessing and the biases and "
                "batch-norms before the layer; where float16 is too narrow, quantize the model in float32 or bfloat16."
            )
        values[layer.node] = Pair(target, None)
        return energy

    def _cross(self, layer: Layer, chosen: QuantizedWeight, nearest: QuantizedWeight) -> tuple[float, float]:
        """Let the quantized stream pass the layer; returns Σ‖y − ŷ‖² with these weights, and with nearest ones.

        The latter is estimated on every n-th batch where there are many samples.
        """
        difference = compared = compared_nearest = 0.0
        constants, constants_nearest = self._constants(chosen), self._constants(nearest)
        same = all(torch.equal(constants[node], constants_nearest[node]) for node in constants)
        weight, step = next(iter(constants.values())), max(1, self._samples // NEAREST_SAMPLES)
        for number, values in enumerate(self._batches):
            inputs = self._fetch(layer.node, values).quantized
            target = self._store.fetch(values[layer.node].float)
            output = _execute(layer.node, {**inputs, **constants})
            distance = _distance(output, target)
            difference += distance
            if not same and number % step == 0:
                compared += distance
                compared_nearest += _output_distance(layer, {**inputs, **constants_nearest}, target)
            passed = self._passed(layer.node, target, output).quantized
            values[layer.node] = Pair(values[layer.node].float, self._store.hold(passed))
            self._release(layer.node, values)
        if not math.isfinite(difference):
            raise ModelError(
                f"layer '{layer.name}' gives finite values in the float network, but NaN or infinite ones with its "
                f"quantized weights: activations come too near to the end of {weight.dtype}. Use more bits, or "
                "quantize the model in float32 or bfloat16."
            )
        # By the ratio on the same samples, so that which of the two is better does not depend on which these are.
        return difference, difference * (compared_nearest / compared) if compared else difference + compared_nearest

    def _constants(self, quantized: QuantizedWeight) -> dict[fx.Node, Tensor]:
        """The layer's weight and bias as it is quantized, by the nodes that give them."""
        layer = quantized.layer
        weight, bias = layer.node.args[1], bind(layer.node)["bias"]
        assert isinstance(weight, fx.Node)
        constants = {weight: _fast_layout(quantized.weight(self._graph.constants[layer.weight].dtype))}
        if isinstance(bias, fx.Node) and quantized.bias is not None:
            constants[bias] = quantized.bias
        return constants

    def _finish(self) -> float:
        """The operations after the last layer; returns the relative error of everything that the network returns."""
        output = next(node for node in self._graph.operations.nodes if node.op == "output")
        difference = energy = 0.0
        for number, values in enumerate(self._batches):
            self._forward(self._tail, values)
            outputs = self._fetch(output, values)
            for node in output.all_input_nodes:
                target = outputs.float[node]
                if isinstance(target, Tensor) and target.is_floating_point():
                    if target.isnan().any():
                        raise ModelError(
                            f"the float network's outputs contain NaN for samples in batch {number} (of "
                            f"{len(self._batches)}). Check these samples' preprocessing, or the network itself."
                        )
                    finite = torch.isfinite(target)  # the −∞ of a mask has no error
                    energy += _squares(target[finite])
                    if node in self._tainted or node in self._quantizers:
                        difference += _distance(outputs.quantized[node][finite], target[finite])
            values.clear()
        if not math.isfinite(difference):
            raise ModelError(
                "the quantized network's outputs are NaN or infinite where the float network's are not. Use more bits, "
                "or quantize the model in float32 or bfloat16."
            )
        return _ratio(difference, energy)

    # ---------------------------------------------------------------------------------- operations on one batch

    def _forward(self, nodes: Iterable[fx.Node], values: Values) -> None:
        """Run operations in both streams, or once where they agree."""
        for node in nodes:
            inputs = self._fetch(node, values)
            value = _execute(node, inputs.float)
            values[node] = self._passed(
                node, value, _execute(node, inputs.quantized) if node in self._tainted else value
            )
            del inputs, value
            self._release(node, values)

    def _passed(self, node: fx.Node, target: Any, value: Any) -> Pair:
        """What an operation gave in both streams, once the quantized one has been watched and quantized."""
        if node in self._watched:
            self._watched[node].add(self._store.fetch(value))
        quantizer = self._quantizers.get(node)
        return Pair(target, value if quantizer is None else quantizer.fake_quantize(self._store.fetch(value)))

    def _fetch(self, node: fx.Node, values: Values) -> Pair:
        """What an operation takes, by the nodes that gave it, on the network's device: a dict for each stream."""
        fetched = Pair({}, {})
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                constant = self._graph.constants[str(source.target)]
                if source in node.args[1:2] and node.target in WEIGHTED:
                    constant = _fast_layout(constant)
                pair = Pair(constant, constant)
            else:
                pair = _each(values[source], self._store.fetch)
            fetched.float[source], fetched.quantized[source] = pair
        if node in self._weights:
            fetched.quantized[node.args[1]] = self._weights[node]
        return fetched

    def _release(self, node: fx.Node, values: Values) -> None:
        """Drop what nobody needs after this operation."""
        for done in self._last_use.get(node, ()):
            values.pop(done, None)

    def _hold(self, nodes: Iterable[fx.Node], values: Values) -> None:
        """Give what these operations gave, and is still needed, into the store's custody."""
        for node in nodes:
            if node in values:
                values[node] = _each(values[node], self._store.hold)

    # ------------------------------------------------------------------------------------------------- planning

    @torch.no_grad()
    def _rehearse(self) -> tuple[Plan, list[float]]:
        """Run the first batch through the float network, to know sizes and times before the run starts.

        Returns the plan, and the estimated seconds of each segment and of the operations after the last.
        """
        values = dict(self._batches[0])
        share = _count(values) / self._samples
        widest, widest_layer, working = 0, "the input", self._live_bytes(values)
        costs: list[float] = []
        for segment in [*self._segments, None]:
            start = time.perf_counter()
            for node in self._tail if segment is None else segment.nodes:
                value = _execute(node, self._fetch(node, values).float)
                values[node] = Pair(value, value)
                working = max(working, self._live_bytes(values))
                self._release(node, values)
            middle = time.perf_counter()
            costs.append(2 * (middle - start) / share)
            if segment is None:
                break
            layer, solver = segment.task.layer, segment.task.rounding
            output = _execute(layer.node, self._fetch(layer.node, values).float)
            seconds = time.perf_counter() - middle
            values[layer.node] = Pair(output, output)
            live = self._live_bytes(values)
            if live > widest:
                widest, widest_layer = live, layer.name
            rows = layer.map.as_rows(output).shape[0]
            positions = math.ceil(rows * layer.map.positions(output) / _count(values))
            needed = max(n.kind.bytes_needed(layer.map, self._samples, positions) for n in segment.task.needs)
            working = max(working, self._live_bytes(values) + needed)
            work = estimated_work(solver, math.ceil(rows / _count(values)), self._samples)
            costs[-1] += 3 * seconds / share + work * seconds / rows
            self._release(layer.node, values)
        plan = Plan(
            layers=tuple(segment.task.layer.name for segment in self._segments),
            samples=self._samples,
            widest_bytes=math.ceil(widest / share),
            widest_layer=widest_layer,
            working_bytes=max(working, widest),
            memory_budget=self._store.budget,
            seconds=sum(costs),
        )
        self._store.check_disk(plan.spilled_bytes)
        return plan, costs

    def _live_bytes(self, values: Values) -> int:
        """What one batch holds in both streams."""
        leaves = {node: pytree.tree_leaves(pair.float) for node, pair in values.items()}
        tensors = [leaf for node in leaves for leaf in leaves[node] if isinstance(leaf, Tensor)]
        twice = leaves.keys() & (self._tainted | self._quantizers.keys())
        tainted = [leaf for node in twice for leaf in leaves[node] if isinstance(leaf, Tensor)]
        return held_bytes(tensors) + held_bytes(tainted)


# ------------------------------------------------------------------------------------------------ on the graph


def _order(graph: Graph, tasks: Iterable[LayerTask]) -> list[fx.Node]:
    """All nodes; what a layer's output is added to comes before it, unless that waits for layers still to be quantized.

    It is held the longer for that, as the plan says.
    """
    place = {node: number for number, node in enumerate(graph.operations.nodes)}
    addends = {task.layer.node: task.addend for task in tasks}
    first_calls = {call: task.layer.node for task in tasks for call in task.layer.calls}
    order: dict[fx.Node, None] = {}
    for node in place:
        missing = _missing(addends.get(node), order)
        if all(first_calls[call] in order for call in missing & first_calls.keys()):
            order.update(dict.fromkeys(sorted(missing, key=place.__getitem__)))
        order[node] = None
    return list(order)


def _missing(wanted: fx.Node | None, known: Container[fx.Node]) -> set[fx.Node]:
    """A node and all that it is computed from, as far as that is not known."""
    missing: set[fx.Node] = set()
    waiting = [] if wanted is None else [wanted]
    while waiting:
        node = waiting.pop()
        if node not in known and node not in missing:
            missing.add(node)
            waiting += node.all_input_nodes
    return missing


def _segments(order: Iterable[fx.Node], tasks: Iterable[LayerTask]) -> tuple[list[_Segment], list[fx.Node]]:
    """The layers in order, each with the operations before it; and the operations after the last."""
    by_node = {task.layer.node: task for task in tasks}
    segments: list[_Segment] = []
    nodes: list[fx.Node] = []
    for node in order:
        if node in by_node:
            segments.append(_Segment(nodes, by_node[node]))
            nodes = []
        elif node.op == "call_function":
            nodes.append(node)
    return segments, nodes


def _last_uses(order: Iterable[fx.Node], but_for: str | None) -> dict[fx.Node, list[fx.Node]]:
    """For each operation, the values that are not needed after it; one kind of node may be needed for ever."""
    last: dict[fx.Node, fx.Node] = {}
    for node in order:
        for source in node.all_input_nodes:
            last[source] = node
        last.setdefault(node, node)
    uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if source.op != but_for:
            uses.setdefault(node, []).append(source)
    return uses


def _tainted(graph: Graph, calls: Iterable[fx.Node], quantizers: Mapping[fx.Node, Quantizer]) -> set[fx.Node]:
    """The operations that compute something else in the quantized stream."""
    tainted = set(calls)
    for node in graph.operations.nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and any(source in tainted or source in quantizers for source in sources):
            tainted.add(node)
    return tainted


# --------------------------------------------------------------------------------------------------- on values


def _execute(node: fx.Node, inputs: dict[fx.Node, Any]) -> Any:
    """One operation, on values by the nodes that gave them."""
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda source: inputs[source])
    target = aten.reshape.default if node.target is aten.view.default else node.target  # layouts differ from capture's
    assert callable(target)
    return target(*args, **kwargs)


def _fast_layout(weight: Tensor) -> Tensor:
    """A convolution's weight with channels last, which makes its output so, and what follows: faster everywhere."""
    if weight.dim() in (4, 5):
        return weight.contiguous(memory_format=torch.channels_last if weight.dim() == 4 else torch.channels_last_3d)
    return weight


def _each(pair: Pair, function: Callable[[Tensor], Tensor]) -> Pair:
    """A function of tensors on all tensors of a pair; what was one object stays one."""
    value = pytree.tree_map_only(Tensor, function, pair.float)
    return Pair(
        value, value if pair.quantized is pair.float else pytree.tree_map_only(Tensor, function, pair.quantized)
    )


def _count(values: Values) -> int:
    """How many samples a batch of inputs holds."""
    return next(int(p.float.shape[0]) for p in values.values() if isinstance(p.float, Tensor) and p.float.dim())


def _squares(values: Tensor) -> float:
    """Σ‖v‖², in float32 or better."""
    return sum(map(_energy, _slices(values, values)))


def _distance(values: Tensor, targets: Tensor) -> float:
    """Σ‖v − t‖², in float32 or better; slice by slice, since the difference is three times faster in the cache."""
    slices = zip(_slices(values, values), _slices(targets, values), strict=True)
    return sum(_energy(some - wanted) for some, wanted in slices)


def _slices(values: Tensor, like: Tensor) -> Iterator[Tensor]:
    """All numbers, some at a time, in the order in which those of `like` lie in memory: plain, or channels last."""
    plain = values if like.is_contiguous() or like.dim() < 2 else values.movedim(1, -1)
    dtype = torch.promote_types(like.dtype, torch.float32)
    return (part.to(dtype) for part in plain.flatten().split(_at_a_time(SLICE, like.device)))


def _energy(values: Tensor) -> float:
    """Σ v², as an inner product: unlike a norm, it is the work of all threads."""
    return float(torch.dot(values, values))


def _output_distance(layer: Layer, inputs: dict[fx.Node, Any], targets: Tensor) -> float:
    """Σ‖v − t‖² for the layer's output v, a few rows at a time: memory that is used again is twice as fast."""
    some, wanted = layer.map.as_rows(inputs[layer.input]), layer.map.as_rows(targets)
    rows = max(1, _at_a_time(OUTPUT_SLICE, wanted.device) // max(1, wanted[:1].numel()))
    slices = zip(some.split(rows), wanted.split(rows), strict=True)
    return sum(_distance(_execute(layer.node, {**inputs, layer.input: x}), t) for x, t in slices)


def _at_a_time(numbers: int, device: torch.device) -> int:
    """So many numbers on a CPU, more on what wants more at a time."""
    return numbers * (1 if device.type == "cpu" else ON_ACCELERATOR)


def _ratio(part: float, whole: float) -> float:
    """A relative error: 1 where the network gives nothing but zeros; never infinite, since reports are kept as JSON."""
    return min(part / whole, sys.float_info.max) if whole else float(part > 0)
