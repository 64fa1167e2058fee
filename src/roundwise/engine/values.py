"""What operations gave for one batch, in both streams, and is still needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.engine.schedule import Schedule, Step
from roundwise.engine.store import ActivationStore
from roundwise.engine.unit import Pair
from roundwise.graph.graph import Graph
from roundwise.graph.operators import WEIGHTED
from roundwise.graph.run import execute, fast_layout
from roundwise.graph.unit import Unit

Values = dict[fx.Node, Pair]
"""One batch, by the keys of the steps (`Step.key`)."""


@final
class Executor:
    """Runs steps of a schedule on the values of a batch, and gives them into custody."""

    def __init__(self, schedule: Schedule, store: ActivationStore) -> None:
        self._schedule, self._store = schedule, store
        self.weights: dict[fx.Node, Tensor] = {}
        """What later calls of a quantized layer compute with in the current stream, by the call."""

    def reference(self, node: fx.Node, values: Values) -> Any:
        """The result of an operation of the reference graph."""
        return execute(node, self.reference_inputs(node, values))

    def current(self, node: fx.Node, values: Values) -> Any:
        """The result of an operation of the current graph."""
        return execute(node, self.current_inputs(node, values))

    def run(self, step: Step, values: Values, *, tainted: bool) -> Pair:
        """A step in both streams, or once where they agree."""
        target = None if step.reference is None else self.reference(step.reference, values)
        if step.current is None:
            return Pair(target, None)
        return Pair(target, self.current(step.current, values) if tainted else target)

    def reference_inputs(self, node: fx.Node, values: Values) -> dict[fx.Node, Any]:
        """What an operation of the reference graph reads, on the network's device."""
        graph, key = self._schedule.reference, self._schedule.key
        return {
            source: _constant(graph, node, source)
            if source.op == "get_attr"
            else fetch(values[key(source)].float, self._store)
            for source in node.all_input_nodes
        }

    def current_inputs(self, node: fx.Node, values: Values) -> dict[fx.Node, Any]:
        """What an operation of the current graph reads, on the network's device, with weights as they are now."""
        graph = self._schedule.graph
        inputs = {
            source: _constant(graph, node, source)
            if source.op == "get_attr"
            else fetch(values[source].quantized, self._store)
            for source in node.all_input_nodes
        }
        if node in self.weights:
            inputs[node.args[1]] = self.weights[node]  # type: ignore[index]
        return inputs

    def unit_output(self, unit: Unit, values: Values) -> Tensor:
        """What a unit gives in the current stream with its float weights."""
        inner = dict(values)
        for node in unit.nodes:
            inner[node] = Pair(None, self.current(node, inner))
        output: Tensor = inner[unit.output].quantized
        return output

    def release(self, node: fx.Node, values: Values) -> None:
        """Drop what nobody needs after this operation."""
        for done in self._schedule.last_use.get(node, ()):
            values.pop(done, None)

    def hold(self, nodes: Iterable[fx.Node], values: Values) -> None:
        """Give what these operations gave, and is still needed, into the store's custody."""
        for node in nodes:
            if node in values:
                values[node] = each(values[node], self._store.hold)


def fetch(value: Any, store: ActivationStore) -> Any:
    """A value on the network's device, wherever it waited."""
    return pytree.tree_map_only(Tensor, store.fetch, value)


def each(pair: Pair, function: Callable[[Tensor], Tensor]) -> Pair:
    """A function of tensors on all tensors of a pair; what was one object stays one."""
    value = pytree.tree_map_only(Tensor, function, pair.float)
    return Pair(
        value, value if pair.quantized is pair.float else pytree.tree_map_only(Tensor, function, pair.quantized)
    )


def count(values: Values) -> int:
    """How many samples a batch of inputs holds."""
    return next(int(p.float.shape[0]) for p in values.values() if isinstance(p.float, Tensor) and p.float.dim())


def _constant(graph: Graph, node: fx.Node, source: fx.Node) -> Any:
    constant = graph.constants[str(source.target)]
    return fast_layout(constant) if source in node.args[1:2] and node.target in WEIGHTED else constant
