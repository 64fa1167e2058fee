"""The values of one batch in both streams, and the executor that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.schedule import Schedule, Step
from roundwise.engine.store import ActivationStore
from roundwise.graph.graph import Graph
from roundwise.graph.operators import WEIGHTED
from roundwise.graph.run import execute, fast_layout
from roundwise.graph.unit import Unit

Values = dict[fx.Node, StreamPair]
"""The values of one batch that are still needed, by the keys of the steps (`Step.key`)."""


@final
class Executor:
    """Runs the steps of a schedule on the values of a batch, and lets the store hold the results."""

    def __init__(self, schedule: Schedule, store: ActivationStore) -> None:
        self._schedule, self._store = schedule, store
        self.weights: dict[fx.Node, Tensor] = {}
        """The quantized weight of each later call of a layer that is called several times."""

    def reference(self, node: fx.Node, values: Values) -> Any:
        """Run an operation of the reference graph."""
        return execute(node, self.reference_inputs(node, values))

    def current(self, node: fx.Node, values: Values) -> Any:
        """Run an operation of the current graph."""
        return execute(node, self.current_inputs(node, values))

    def run(self, step: Step, values: Values, *, differing: bool) -> StreamPair:
        """Run a step in both streams, or once if the streams do not differ."""
        target = None if step.reference is None else self.reference(step.reference, values)
        if step.current is None:
            return StreamPair(target, None)
        return StreamPair(target, self.current(step.current, values) if differing else target)

    def reference_inputs(self, node: fx.Node, values: Values) -> dict[fx.Node, Any]:
        """The inputs of an operation of the reference graph, on the network's device."""
        graph, key = self._schedule.reference, self._schedule.key
        return {
            source: _constant(graph, node, source)
            if source.op == "get_attr"
            else fetch(values[key(source)].reference, self._store)
            for source in node.all_input_nodes
        }

    def current_inputs(self, node: fx.Node, values: Values) -> dict[fx.Node, Any]:
        """The inputs of an operation of the current graph, on the network's device, with weights quantized so far."""
        graph = self._schedule.graph
        inputs = {
            source: _constant(graph, node, source)
            if source.op == "get_attr"
            else fetch(values[source].current, self._store)
            for source in node.all_input_nodes
        }
        if node in self.weights:
            inputs[node.args[1]] = self.weights[node]  # type: ignore[index]
        return inputs

    def unit_output(self, unit: Unit, values: Values) -> Tensor:
        """The output of a unit in the current stream with its float weights."""
        inner = dict(values)
        for node in unit.nodes:
            inner[node] = StreamPair(None, self.current(node, inner))
        output: Tensor = inner[unit.output].current
        return output

    def release(self, node: fx.Node, values: Values) -> None:
        """Drop the values that no operation after this one needs."""
        for done in self._schedule.last_use.get(node, ()):
            values.pop(done, None)

    def hold(self, nodes: Iterable[fx.Node], values: Values) -> None:
        """Let the store hold the results of these operations that are still needed."""
        for node in nodes:
            if node in values:
                values[node] = each(values[node], self._store.hold)


def fetch(value: Any, store: ActivationStore) -> Any:
    """A value on the network's device."""
    return pytree.tree_map_only(Tensor, store.fetch, value)


def each(pair: StreamPair, function: Callable[[Tensor], Tensor]) -> StreamPair:
    """Apply a function to all tensors of a pair; if the pair is one object, so is the result."""
    value = pytree.tree_map_only(Tensor, function, pair.reference)
    return StreamPair(
        value, value if pair.current is pair.reference else pytree.tree_map_only(Tensor, function, pair.current)
    )


def count(values: Values) -> int:
    """The number of samples in a batch of inputs."""
    leaves = (pair.reference for pair in values.values())
    return next(int(leaf.shape[0]) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim())


def _constant(graph: Graph, node: fx.Node, source: fx.Node) -> Any:
    constant = graph.constants[str(source.target)]
    return fast_layout(constant) if source in node.args[1:2] and node.target in WEIGHTED else constant
