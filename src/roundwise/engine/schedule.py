"""Schedule a pass: in which order the operations of two graphs run, which of them differ, and when values can be freed.

The *reference* graph is the float network that errors are measured against. The *current* graph is the network so far.
They may be the same graph, or the current graph may have been edited: a layer split in two, channels removed.
`counterparts` says which tensor of the current graph is compared with which tensor of the reference.

    a step      computes one tensor: by an operation of the reference, of the current graph, or of both
    shared      both graphs have the same operation on equal inputs: it runs once, and both streams hold one object
    a segment   a unit whose weights are chosen, and the steps before it

Steps have the order of the current graph. An operation of the reference that has no counterpart comes just before the
step that needs it.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from torch import fx

from roundwise.engine.answers import UnitTask
from roundwise.graph.graph import Graph
from roundwise.graph.unit import Unit


class Step(NamedTuple):
    """Computes one tensor.

    Attributes:
        reference: the operation of the reference graph that gives it; None if the reference has no such tensor.
        current: the operation of the current graph that gives it; None if the current graph has no such tensor.
        shared: whether both operations give the same value as long as nothing before them is quantized.
    """

    reference: fx.Node | None
    current: fx.Node | None
    shared: bool = True

    @property
    def key(self) -> fx.Node:
        """The key of the tensor in `Values`: its operation in the current graph, or else in the reference."""
        node = self.current if self.current is not None else self.reference
        assert node is not None
        return node


@final
@dataclass(frozen=True, eq=False)
class Segment:
    """The steps before a unit, and the unit."""

    steps: list[Step]
    task: UnitTask[Any, Any]


@final
@dataclass(frozen=True, eq=False)
class Schedule:
    """The order of a pass.

    Attributes:
        graph, reference: the two graphs.
        segments: the units whose weights are chosen, in order, each with the steps before it.
        tail: the steps after the last unit.
        inputs: the network's inputs.
        differing: the operations of the current graph whose result differs from the reference's, once the weights
            before them are quantized.
        last_use: for each step, the tensors that no later step needs.
        keys: for each operation of the reference that has a counterpart, the key of their common tensor.
    """

    graph: Graph
    reference: Graph
    segments: list[Segment]
    tail: list[Step]
    inputs: list[fx.Node]
    differing: set[fx.Node]
    last_use: dict[fx.Node, list[fx.Node]]
    keys: dict[fx.Node, fx.Node]
    _counterparts: dict[fx.Node, fx.Node]
    _alone: set[fx.Node]  # operations of the reference that have steps of their own

    @classmethod
    def of(
        cls,
        graph: Graph,
        tasks: Sequence[UnitTask[Any, Any]],
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
            reference: the float network; by default the graph itself.
            counterparts: for each operation of the graph that has a counterpart in the reference, the counterpart's
                name; by default, operations with the same name correspond.
            keeps_inputs: whether the network's inputs are needed after the pass.
        """
        reference = graph if reference is None else reference
        pairs = _pairs(graph, reference, counterparts)
        keys = {node: current for current, node in pairs.items()}
        steps = _units_in_one_piece(_steps(graph, reference, tasks, pairs), tasks)
        segments, tail = _segments(steps, tasks)
        shared = {step.current for step in steps if step.shared and step.current is not None}
        calls = [call for task in tasks if task.changes for layer in task.unit.layers for call in layer.calls]
        return cls(
            graph,
            reference,
            segments,
            tail,
            inputs=[node for node in graph.operations.nodes if node.op == "placeholder"],
            differing=_differing(graph, calls, shared, quantized),
            last_use=_last_uses(steps, keys, but_for="placeholder" if keeps_inputs else None),
            keys=keys,
            _counterparts=pairs,
            _alone={step.reference for step in steps if step.reference is not None and step.current is None},
        )

    def key(self, node: fx.Node) -> fx.Node:
        """The key of the tensor that an operation of either graph gives."""
        return self.keys.get(node, node)

    def counterpart(self, node: fx.Node) -> fx.Node | None:
        """The operation of the reference whose result is compared with this one's; None if there is none."""
        return self._counterparts.get(node)

    def reference_nodes(self, unit: Unit) -> list[fx.Node]:
        """The operations of the reference that compute a unit's output from tensors that are at hand."""
        if len(unit.nodes) == 1 or self.reference is self.graph:
            return [node for node in map(self.counterpart, unit.nodes) if node is not None]
        # A unit may read tensors that the reference does not have; then others of the reference stand before it. Where
        # these have no counterpart, as with channels that are gone, they have steps of their own before the unit.
        outside = self._alone | {other for node, other in self._counterparts.items() if node not in unit.nodes}
        needed = _missing(self.counterpart(unit.output), outside)
        return [node for node in self.reference.operations.nodes if node in needed and node.op == "call_function"]

    @property
    def outputs(self) -> list[tuple[fx.Node, fx.Node]]:
        """For each tensor that the network returns, its operation in the reference and in the current graph."""
        ends = (_output(self.reference).all_input_nodes, _output(self.graph).all_input_nodes)
        return list(zip(*ends, strict=True))


def _output(graph: Graph) -> fx.Node:
    node: fx.Node = next(node for node in graph.operations.nodes if node.op == "output")
    return node


def _pairs(graph: Graph, reference: Graph, counterparts: Mapping[str, str] | None) -> dict[fx.Node, fx.Node]:
    """The counterpart in the reference of each operation and input of the current graph that has one."""
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


def _steps(
    graph: Graph, reference: Graph, tasks: Iterable[UnitTask[Any, Any]], pairs: Mapping[fx.Node, fx.Node]
) -> list[Step]:
    """A step for each tensor and for the output; each comes after the steps that its operation reads."""
    order = _order(graph, tasks)
    if reference is graph:
        return [Step(node, node) for node in order]
    steps: list[Step] = []
    shared: set[fx.Node] = set()  # operations of the current graph that run once for both graphs
    done: set[fx.Node] = set()  # operations of the reference that have a step
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


def _units_in_one_piece(steps: Iterable[Step], tasks: Iterable[UnitTask[Any, Any]]) -> list[Step]:
    """The steps of each unit directly before its output's: a unit runs as a whole, after all steps that come before."""
    output_of = {node: task.unit.output for task in tasks for node in task.unit.nodes}
    waiting: dict[fx.Node, list[Step]] = {}
    ordered: list[Step] = []
    for step in steps:
        output = None if step.current is None else output_of.get(step.current)
        if output is None:
            ordered.append(step)
        elif step.current is not output:
            waiting.setdefault(output, []).append(step)
        else:
            ordered += [*waiting.pop(output, ()), step]
    return ordered


def _same(
    graph: Graph,
    node: fx.Node,
    reference: Graph,
    other: fx.Node,
    pairs: Mapping[fx.Node, fx.Node],
    shared: Container[fx.Node],
) -> bool:
    """Whether two operations are the same and read equal tensors."""
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
    """The arguments as text, in which each input is its position among the inputs."""
    places = {source: f"<{place}>" for place, source in enumerate(node.all_input_nodes)}
    return str(fx.map_arg((node.args, dict(node.kwargs)), lambda source: places[source]))


def _order(graph: Graph, tasks: Iterable[UnitTask[Any, Any]]) -> list[fx.Node]:
    """All operations of the current graph, in the order in which they run.

    If a solver is `addition_aware`, the other branch of the addition is computed before the layer, unless that branch
    has layers that are not quantized yet. The branch is then held longer; the plan counts that.
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
    """An operation and all operations that it depends on, without those that are known."""
    missing: set[fx.Node] = set()
    waiting = [] if wanted is None else [wanted]
    while waiting:
        node = waiting.pop()
        if node not in known and node not in missing:
            missing.add(node)
            waiting += node.all_input_nodes
    return missing


def _segments(steps: Iterable[Step], tasks: Iterable[UnitTask[Any, Any]]) -> tuple[list[Segment], list[Step]]:
    """The units in order, each with the steps before it; and the steps after the last unit."""
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
    """For each step, the values that no later step needs; values of nodes of the kind `but_for` are never freed."""
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


def _differing(
    graph: Graph, calls: Iterable[fx.Node], shared: Container[fx.Node], quantized: Container[fx.Node]
) -> set[fx.Node]:
    """The operations whose result differs from the reference's: quantized layers, and all that depends on them."""
    differing = set(calls)
    for node in graph.operations.nodes:
        sources = node.all_input_nodes
        if node.op != "call_function":
            continue
        if node not in shared or any(source in differing or source in quantized for source in sources):
            differing.add(node)
    return differing
