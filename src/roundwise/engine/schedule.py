"""In which order the operations of two graphs run side by side, which of them agree, and when a value is last needed.

The *reference* is the float network that errors are measured against; the *current* graph is the network as it is so
far. They may be the same graph, or the current one may have been edited: a layer split in two, channels removed.
`counterparts` says which tensors of the current graph can be compared with which of the reference.

    a step      one tensor: the operation that gives it in the reference, the one in the current graph, or both
    shared      both, and the same operation on inputs that agree: it runs once, and the two values are one object
    a segment   the steps before a unit whose weights are chosen, and that unit: a decision

Steps follow the current graph. An operation of the reference that has no counterpart comes just before the step that
needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from torch import fx

from roundwise.engine.unit import UnitTask
from roundwise.graph.graph import Graph
from roundwise.graph.unit import Unit


class Step(NamedTuple):
    """One tensor.

    Attributes:
        reference: the operation that gives it in the reference graph; None where the reference has no such tensor.
        current: the operation that gives it in the current graph; None likewise.
        shared: whether both give the same value, as long as nothing before was quantized.
    """

    reference: fx.Node | None
    current: fx.Node | None
    shared: bool = True

    @property
    def key(self) -> fx.Node:
        """By which the tensor is found among the values: the current graph's operation where there is one."""
        node = self.current if self.current is not None else self.reference
        assert node is not None
        return node


@final
@dataclass(frozen=True, eq=False)
class Segment:
    """The steps before a unit, and the unit."""

    steps: list[Step]
    task: UnitTask


@final
@dataclass(frozen=True, eq=False)
class Schedule:
    """The order of a pass.

    Attributes:
        graph, reference: the two graphs.
        segments: the units whose weights are chosen, in order, each with the steps before it.
        tail: the steps after the last unit.
        inputs: the network's inputs.
        tainted: the operations of the current graph that give something else than the reference does, once weights
            before them are quantized.
        last_use: for each step, the tensors that nobody needs after it.
        keys: for each operation of the reference that has a counterpart, the key of their tensor.
    """

    graph: Graph
    reference: Graph
    segments: list[Segment]
    tail: list[Step]
    inputs: list[fx.Node]
    tainted: set[fx.Node]
    last_use: dict[fx.Node, list[fx.Node]]
    keys: dict[fx.Node, fx.Node]
    _counterparts: dict[fx.Node, fx.Node]

    @classmethod
    def of(
        cls,
        graph: Graph,
        tasks: Sequence[UnitTask],
        quantized: Collection[fx.Node] = (),
        *,
        reference: Graph | None = None,
        counterparts: Mapping[str, str] | None = None,
        keeps_inputs: bool = False,
    ) -> Schedule:
        """Put the operations in order.

        Args:
            graph: the network so far.
            tasks: the units whose weights are chosen.
            quantized: tensors between operations that are quantized.
            reference: the float network; the graph itself if left out.
            counterparts: for each operation of the graph that the reference has too, its name there; without it,
                operations of the same name correspond.
            keeps_inputs: whether the network's inputs are needed after the pass.
        """
        reference = graph if reference is None else reference
        pairs = _pairs(graph, reference, counterparts)
        keys = {node: current for current, node in pairs.items()}
        steps = _steps(graph, reference, tasks, pairs)
        segments, tail = _segments(steps, tasks)
        shared = {step.current for step in steps if step.shared and step.current is not None}
        calls = [call for task in tasks for layer in task.unit.layers for call in layer.calls]
        return cls(
            graph,
            reference,
            segments,
            tail,
            inputs=[node for node in graph.operations.nodes if node.op == "placeholder"],
            tainted=_tainted(graph, calls, shared, quantized),
            last_use=_last_uses(steps, keys, but_for="placeholder" if keeps_inputs else None),
            keys=keys,
            _counterparts=pairs,
        )

    def key(self, node: fx.Node) -> fx.Node:
        """The key of the tensor that an operation of either graph gives."""
        return self.keys.get(node, node)

    def counterpart(self, node: fx.Node) -> fx.Node | None:
        """The operation of the reference that gives the tensor to compare with; None where there is none."""
        return self._counterparts.get(node)

    def reference_nodes(self, unit: Unit) -> list[fx.Node]:
        """The operations of the reference that give a unit's output, from tensors that the streams hold."""
        if len(unit.nodes) == 1 or self.reference is self.graph:
            return [node for node in map(self.counterpart, unit.nodes) if node is not None]
        target = self.counterpart(unit.output)
        inside = {node for node in map(self.counterpart, unit.inputs) if node is not None}
        needed = _missing(target, inside)
        return [node for node in self.reference.operations.nodes if node in needed and node.op == "call_function"]

    @property
    def outputs(self) -> list[tuple[fx.Node, fx.Node]]:
        """What the network returns: for each tensor the operation in the reference and that in the current graph."""
        ends = (_output(self.reference).all_input_nodes, _output(self.graph).all_input_nodes)
        return list(zip(*ends, strict=True))


def _output(graph: Graph) -> fx.Node:
    node: fx.Node = next(node for node in graph.operations.nodes if node.op == "output")
    return node


def _pairs(graph: Graph, reference: Graph, counterparts: Mapping[str, str] | None) -> dict[fx.Node, fx.Node]:
    """For each operation and input of the current graph that has one, its counterpart in the reference."""
    if reference is graph:
        return {node: node for node in graph.operations.nodes}
    there = {node.name: node for node in reference.operations.nodes}
    names = {node.name: node.name for node in graph.operations.nodes} if counterparts is None else counterparts
    pairs = {
        node: there[names[node.name]]
        for node in graph.operations.nodes
        if node.op in ("placeholder", "call_function") and names.get(node.name) in there
    }
    ends = zip(*(side.operations.find_nodes(op="placeholder") for side in (graph, reference)), strict=True)
    return {**pairs, **dict(ends), _output(graph): _output(reference)}


def _steps(graph: Graph, reference: Graph, tasks: Iterable[UnitTask], pairs: Mapping[fx.Node, fx.Node]) -> list[Step]:
    """All tensors and the output, in an order in which each comes after what it is computed from."""
    order = _order(graph, tasks)
    if reference is graph:
        return [Step(node, node) for node in order]
    steps: list[Step] = []
    shared: set[fx.Node] = set()  # operations of the current graph whose tensor is the reference's
    done: set[fx.Node] = set()  # operations of the reference
    for node in order:
        other = pairs.get(node)
        if other is not None:
            mine = {pairs[source] for source in node.all_input_nodes if source in pairs}
            lacking = _missing(other, done | mine) - {other}
            ahead = [one for one in reference.operations.nodes if one in lacking]
            steps += [Step(one, None, shared=False) for one in ahead]
            done.update(ahead, {other})
        same = other is not None and _same(graph, node, reference, other, pairs, shared)
        if same:
            shared.add(node)
        steps.append(Step(other, node, same))
    return steps


def _same(
    graph: Graph,
    node: fx.Node,
    reference: Graph,
    other: fx.Node,
    pairs: Mapping[fx.Node, fx.Node],
    shared: Container[fx.Node],
) -> bool:
    """Whether two operations do the same to tensors that agree."""
    if node.op == "placeholder":
        return other.op == "placeholder"
    if node.target is not other.target or len(node.all_input_nodes) != len(other.all_input_nodes):
        return False
    if _arguments(node) != _arguments(other):
        return False
    for mine, theirs in zip(node.all_input_nodes, other.all_input_nodes, strict=True):
        if mine.op == "get_attr":
            if graph.constants[str(mine.target)] is not reference.constants.get(str(theirs.target)):
                return False
        elif mine not in shared or pairs.get(mine) is not theirs:
            return False
    return True


def _arguments(node: fx.Node) -> str:
    """The arguments, with the operations that are read by their places."""
    places = {source: f"<{place}>" for place, source in enumerate(node.all_input_nodes)}
    return str(fx.map_arg((node.args, dict(node.kwargs)), lambda source: places[source]))


def _order(graph: Graph, tasks: Iterable[UnitTask]) -> list[fx.Node]:
    """All operations of the current graph.

    What a layer's output is added to comes before the layer, unless it waits for layers still to be quantized. It is
    held the longer for that, as the plan says.
    """
    tasks = list(tasks)
    place = {node: number for number, node in enumerate(graph.operations.nodes)}
    addends = {task.unit.output: task.addend for task in tasks}
    first_calls = {call: task.unit.output for task in tasks for layer in task.unit.layers for call in layer.calls}
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


def _segments(steps: Iterable[Step], tasks: Iterable[UnitTask]) -> tuple[list[Segment], list[Step]]:
    """The units in order, each with the steps before it; and the steps after the last."""
    by_output = {task.unit.output: task for task in tasks}
    inside = {node for task in by_output.values() for node in task.unit.nodes}
    segments: list[Segment] = []
    before: list[Step] = []
    for step in steps:
        if step.current in by_output:
            segments.append(Segment(before, by_output[step.current]))
            before = []
        elif step.current not in inside and step.key.op == "call_function":
            before.append(step)
    return segments, before


def _last_uses(
    steps: Sequence[Step], keys: Mapping[fx.Node, fx.Node], but_for: str | None
) -> dict[fx.Node, list[fx.Node]]:
    """For each step, the values that are not needed after it; one kind of node may be needed for ever."""
    last: dict[fx.Node, fx.Node] = {}
    for step in steps:
        for node in (step.reference, step.current):
            for source in node.all_input_nodes if node is not None else ():
                last[keys.get(source, source)] = step.key
        last.setdefault(step.key, step.key)
    uses: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        if source.op != but_for:
            uses.setdefault(node, []).append(source)
    return uses


def _tainted(
    graph: Graph, calls: Iterable[fx.Node], shared: Container[fx.Node], quantized: Container[fx.Node]
) -> set[fx.Node]:
    """The operations that compute something else in the current network than in the reference."""
    tainted = set(calls)
    for node in graph.operations.nodes:
        sources = node.all_input_nodes
        if node.op != "call_function":
            continue
        if node not in shared or any(source in tainted or source in quantized for source in sources):
            tainted.add(node)
    return tainted
