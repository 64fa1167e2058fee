"""One pass over the network, two streams.

Every operation runs once for the float network and once for the network that is already quantized up to here, batch by
batch, from one layer to the next; a tensor is dropped after its last use. So the cost is linear in depth, and memory is
what is alive between two layers (the *frontier*), which is known before the run starts.

At each layer, in order:

    inputs x̂ (quantized stream) and targets y (float stream)  ──▶  the statistics that the methods need
    statistics  ──▶  grid  ──▶  codes  ──▶  the quantized stream goes on with the layer's output on those codes

Before the first quantized layer the two streams are one and the same tensors; they are computed and kept once.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx

from roundwise.errors import ModelError
from roundwise.events import LayerFinished, LayerStarted, Plan, Planned, Progress
from roundwise.graph.capture import Graph
from roundwise.graph.emit import QuantizedWeight
from roundwise.graph.patterns import Layer
from roundwise.grid import Codebook, Granularity
from roundwise.memory import ActivationStore
from roundwise.problem import Problem, RangeEstimator, RoundingSolver
from roundwise.report import LayerReport
from roundwise.statistics import Statistic


@final
@dataclass(frozen=True, eq=False)
class LayerTask:
    """A layer and how to quantize it, with the words for it in the report."""

    layer: Layer
    codebook: Codebook
    granularity: Granularity
    ranges: RangeEstimator[Any]
    rounding: RoundingSolver[Any]
    words: tuple[str, str, str]  # granularity, ranges, rounding


class Pair(NamedTuple):
    """One value in both streams; the same object where they agree."""

    float: Any
    quantized: Any


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
    """The operations between two layers that will be quantized, and the layer at their end (None at the graph's)."""

    nodes: list[fx.Node]
    task: LayerTask | None


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
        seed: int,
        store: ActivationStore,
        progress: Progress | None = None,
    ) -> None:
        self._graph, self._store, self._seed, self._samples = graph, store, seed, samples
        self._progress: Progress = progress or (lambda _: None)
        self._by_node = {task.layer.node: task for task in tasks}
        self._segments = _segments(graph, self._by_node)
        self._last_use = _last_uses(graph)
        self._tainted = _tainted(graph, [call for task in tasks for call in task.layer.calls])
        self._weights: dict[tuple[fx.Node, str], Tensor] = {}  # (call, constant) → its dequantized weight
        self._clock = dict.fromkeys(("forward", "ranges", "rounding"), 0.0)
        placeholders = [node for node in graph.operations.nodes if node.op == "placeholder"]
        self._batches: list[dict[fx.Node, Pair]] = [
            {node: Pair(leaf, leaf) for node, leaf in zip(placeholders, batch, strict=True)} for batch in batches
        ]
        self.plan, self._costs = self._rehearse(batches[0])

    # ---------------------------------------------------------------------------------------------- the pass

    @torch.no_grad()
    def run(self) -> StreamResult:
        """Quantize every layer.

        Raises:
            ModelError: a weight or an activation of the float network is not finite.
        """
        self._progress(Planned(self.plan))
        weights: list[QuantizedWeight] = []
        reports: list[LayerReport] = []
        begin = time.perf_counter()
        for segment in self._segments:
            task = segment.task
            if task is None:
                for number, values in enumerate(self._batches):
                    self._run_segment(segment, number, values)
                continue
            index = len(reports)
            self._progress(LayerStarted(task.layer.name, index, len(self._by_node)))
            weight, report = self._quantize(segment, task)
            weights.append(weight)
            reports.append(report)
            elapsed, done = time.perf_counter() - begin, sum(self._costs[: index + 1])
            left = elapsed * (sum(self._costs) - done) / done if done else 0.0
            self._progress(LayerFinished(report, index, len(self._by_node), left))
        output_error = self._output_error()
        return StreamResult(weights, reports, output_error, self._clock)

    def _quantize(self, segment: _Segment, task: LayerTask) -> tuple[QuantizedWeight, LayerReport]:
        layer, name = task.layer, task.layer.name
        source = self._graph.constants[layer.weight]
        matrix = layer.map.to_matrix(source).float()
        if not torch.isfinite(matrix).all():
            count = int((~torch.isfinite(matrix)).sum())
            raise ModelError(
                f"layer '{name}' has {count} weights that are NaN or infinite, of {matrix.numel()}. Such a network "
                "computes nothing to compare with; load sound weights."
            )
        statistics = {kind: kind.empty(layer.map, self._samples) for kind in (task.ranges.needs, task.rounding.needs)}
        for number, values in enumerate(self._batches):
            self._run_segment(segment, number, values, statistics.values())

        before = self._clock["ranges"] + self._clock["rounding"]
        with self._timed("ranges"):
            grid = task.ranges.estimate(matrix, task.codebook, task.granularity, statistics[task.ranges.needs], name)
        with self._timed("rounding"):
            problem = Problem(name, matrix, grid, statistics[task.rounding.needs], layer.activation)
            rounding = task.rounding.solve(problem, generator_for(self._seed, name))
        spent = self._clock["ranges"] + self._clock["rounding"] - before
        del problem, statistics

        nearest = grid.quantize(matrix)
        quantized = QuantizedWeight(layer, rounding.codes, grid)
        flips = float((rounding.codes != nearest).float().mean())
        weight = quantized.weight(source.dtype)
        for call in layer.calls:
            self._weights[call, layer.weight] = weight
        weight_nearest = QuantizedWeight(layer, nearest, grid).weight(source.dtype) if flips else weight
        error, error_nearest = self._advance(layer, weight, weight_nearest)
        granularity, ranges, solver = task.words
        notes = [f"used by {len(layer.calls)} calls; rounded for the first"] if len(layer.calls) > 1 else []
        others = [user for node in self._graph.operations.nodes if node.target == layer.weight for user in node.users]
        if len(others) > len(layer.calls):
            notes.append("its weight is also read by other operations, which keep the float one")
        if not matrix.any():
            notes.append("all weights are zero")
        report = LayerReport(
            name=name,
            operation=layer.map.operation,
            shape=layer.map.weight_shape,
            bits=task.codebook.bits,
            granularity=granularity,
            symmetric=task.codebook.symmetric,
            ranges=ranges,
            rounding=solver,
            error_nearest=error_nearest,
            error=error,
            flips=flips,
            seconds=spent,
            note="; ".join(notes),
        )
        return quantized, report

    def _run_segment(
        self, segment: _Segment, number: int, values: dict[fx.Node, Pair], statistics: Iterable[Statistic] = ()
    ) -> None:
        """One batch from the layer before to the layer at the segment's end, whose float output is its target."""
        with self._timed("forward"):
            for node in segment.nodes:
                inputs = self._fetch(node, values)
                value = self._execute(node, inputs, quantized=False)
                both = self._execute(node, inputs, quantized=True) if node in self._tainted else value
                values[node] = Pair(value, both)
                self._release(node, values)
            if segment.task is not None:
                layer = segment.task.layer
                target = self._execute(layer.node, self._fetch(layer.node, values), quantized=False)
                if not bool(target.float().sum().isfinite()):
                    raise ModelError(
                        f"the float network gives NaN or infinite values at layer '{layer.name}' for samples in batch "
                        f"{number} (of {len(self._batches)}). Check these samples' preprocessing, or keep the layers "
                        "before it out of float16."
                    )
                values[layer.node] = Pair(target, None)
            for node, pair in values.items():
                values[node] = self._hold(pair)
        if segment.task is not None:
            layer = segment.task.layer
            for statistic in statistics:
                statistic.add(values[layer.input].quantized, values[layer.node].float)

    def _advance(self, layer: Layer, weight: Tensor, weight_nearest: Tensor) -> tuple[float, float]:
        """Let the quantized stream pass the layer, and measure: (error, error with nearest rounding)."""
        chosen = nearest = energy = 0.0
        with self._timed("forward"):
            for values in self._batches:
                target = self._store.fetch(values[layer.node].float)
                inputs = self._fetch(layer.node, values)
                output = self._execute(layer.node, inputs, quantized=True)
                energy += _squares(target)
                chosen += _squares(output.float() - target.float())
                if weight_nearest is not weight:
                    simple = self._execute(layer.node, inputs, quantized=True, weight=weight_nearest)
                    nearest += _squares(simple.float() - target.float())
                values[layer.node] = self._hold(Pair(values[layer.node].float, output))
                self._release(layer.node, values)
        return _ratio(chosen, energy), _ratio(nearest if weight_nearest is not weight else chosen, energy)

    # ---------------------------------------------------------------------------------------- single operations

    def _execute(
        self, node: fx.Node, inputs: dict[fx.Node, Pair], *, quantized: bool, weight: Tensor | None = None
    ) -> Any:
        """One operation in one stream."""

        def value(argument: fx.Node) -> Any:
            if argument.op == "get_attr":
                name = str(argument.target)
                replaced = self._weights.get((node, name)) if quantized else None
                if replaced is not None:
                    return replaced if weight is None else weight
                return self._graph.constants[name]
            pair = inputs[argument]
            return pair.quantized if quantized else pair.float

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _fetch(self, node: fx.Node, values: dict[fx.Node, Pair]) -> dict[fx.Node, Pair]:
        """The operation's inputs, on the network's device."""
        fetched = {}
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                pair = values[source]
                value = self._on_device(pair.float)
                both = value if pair.quantized is pair.float else self._on_device(pair.quantized)
                fetched[source] = Pair(value, both)
        return fetched

    def _on_device(self, value: Any) -> Any:
        return self._store.fetch(value) if isinstance(value, Tensor) else value

    def _release(self, node: fx.Node, values: dict[fx.Node, Pair]) -> None:
        """Drop what nobody needs after this operation."""
        for done in self._last_use.get(node, ()):
            values.pop(done, None)

    def _hold(self, pair: Pair) -> Pair:
        """Give both values of a pair into the store's custody (what is there already stays as it is)."""

        def hold(value: Any) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(map(hold, value))
            return self._store.hold(value) if isinstance(value, Tensor) else value

        value = hold(pair.float)
        return Pair(value, value if pair.quantized is pair.float else hold(pair.quantized))

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the wall time of a block to a stage."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._clock[stage] += time.perf_counter() - begin

    # ------------------------------------------------------------------------------------------------- planning

    @torch.no_grad()
    def _rehearse(self, batch: list[Any]) -> tuple[Plan, list[float]]:
        """Run a few samples through the float network, to know sizes and times before the run starts.

        Returns the plan and the estimated seconds of each layer.
        """
        few = self._graph.batch or min(4, _count(batch))
        leaves = [
            leaf[:few].to(self._store.device) if isinstance(leaf, Tensor) and leaf.dim() else leaf for leaf in batch
        ]
        placeholders = (node for node in self._graph.operations.nodes if node.op == "placeholder")
        values = {node: Pair(leaf, leaf) for node, leaf in zip(placeholders, leaves, strict=True)}
        sizes: dict[fx.Node, float] = {node: _bytes(pair.float) / few for node, pair in values.items()}
        live = dict(sizes)
        widest, widest_layer, working = 0.0, "the input", 0.0
        costs: list[float] = []
        for segment in self._segments:
            begin = time.perf_counter()
            most = sum(live.values())
            for node in segment.nodes:
                value = self._execute(node, self._fetch(node, values), quantized=False)
                values[node] = Pair(value, value)
                sizes[node] = live[node] = _bytes(value) / few * (2 if node in self._tainted else 1)
                most = max(most, sum(live.values()))
                for done in self._last_use.get(node, ()):
                    values.pop(done, None)
                    live.pop(done, None)
            if segment.task is None:
                costs.append((time.perf_counter() - begin) / few * 2 * self._samples)
                working = max(working, most)
                continue
            layer, solver = segment.task.layer, segment.task.rounding
            start = time.perf_counter()
            output = self._execute(layer.node, self._fetch(layer.node, values), quantized=False)
            end = time.perf_counter()
            values[layer.node] = Pair(output, output)
            live[layer.node] = 2 * _bytes(output) / few
            if sum(live.values()) > widest:
                widest, widest_layer = sum(live.values()), layer.name
            working = max(working, most + 2 * _bytes(output) / few)
            rows = layer.map.as_rows(output).shape[0]
            solving = solver.work(math.ceil(rows / few), self._samples) * (end - start) / rows
            costs.append((end - begin) / few * 3 * self._samples + solving)
            for done in self._last_use.get(layer.node, ()):
                values.pop(done, None)
                live.pop(done, None)
        plan = Plan(
            layers=tuple(task.layer.name for task in self._by_node.values()),
            samples=self._samples,
            widest_bytes=math.ceil(widest * self._samples),
            widest_layer=widest_layer,
            working_bytes=math.ceil(working * _count(batch)),
            memory_budget=self._store.budget,
            seconds=sum(costs),
        )
        self._store.check_disk(plan.spilled_bytes)
        return plan, costs

    def _output_error(self) -> float:
        """Relative error of everything that the network returns, over all samples."""
        output = next(node for node in self._graph.operations.nodes if node.op == "output")
        difference = energy = 0.0
        for values in self._batches:
            for node in output.all_input_nodes:
                pair = values.get(node)
                if pair is not None and isinstance(pair.float, Tensor) and pair.float.is_floating_point():
                    energy += _squares(pair.float)
                    if pair.quantized is not pair.float:
                        difference += _squares(pair.quantized.float() - pair.float.float())
        return _ratio(difference, energy)


def generator_for(seed: int, name: str) -> torch.Generator:
    """A layer's own source of randomness: the same for the same seed and name, whatever else happens in the run."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _segments(graph: Graph, tasks: dict[fx.Node, LayerTask]) -> list[_Segment]:
    segments: list[_Segment] = []
    nodes: list[fx.Node] = []
    for node in graph.operations.nodes:
        if node in tasks:
            segments.append(_Segment(nodes, tasks[node]))
            nodes = []
        elif node.op == "call_function":
            nodes.append(node)
    return [*segments, _Segment(nodes, None)]


def _last_uses(graph: Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each operation, the values that are not needed after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.operations.nodes:
        for source in node.all_input_nodes:
            last[source] = node
        last.setdefault(node, node)
    uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        uses.setdefault(node, []).append(source)
    return uses


def _tainted(graph: Graph, calls: Iterable[fx.Node]) -> set[fx.Node]:
    """The operations whose value differs between the streams."""
    tainted = set(calls)
    for node in graph.operations.nodes:
        if node.op == "call_function" and any(source in tainted for source in node.all_input_nodes):
            tainted.add(node)
    return tainted


def _count(batch: list[Any]) -> int:
    """How many samples a batch of inputs holds."""
    return next(int(leaf.shape[0]) for leaf in batch if isinstance(leaf, Tensor) and leaf.dim())


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0


def _squares(values: Tensor) -> float:
    return float(values.float().square().sum(dtype=torch.float64))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
