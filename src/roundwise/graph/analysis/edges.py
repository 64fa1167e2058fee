"""The layers at the two edges of a network: those that no layer comes before, and those that no layer comes after.

At few bits these layers hurt most and cost least. The first ones read the network's inputs, which have more detail than
any tensor after them; the last ones give the logits. A network with several inputs or heads has several of each.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.graph.operators import AVERAGES


def edge_layers(graph: Graph, layers: Sequence[Layer]) -> set[str]:
    """The names of the weights of the first and the last layers."""
    before, after = _neighbours(graph, layers)
    first = {one.weight for one in layers if not any(before[call] for call in one.calls)}
    last = {one.weight for one in layers if not any(after[call] for call in one.calls)}
    return first | last


def edge_readers(graph: Graph, layers: Sequence[Layer]) -> set[fx.Node]:
    """The calls of these layers, and the averages after which only last layers come, such as a global pool."""
    edges = edge_layers(graph, layers)
    _, after = _neighbours(graph, layers)
    calls = {call for one in layers if one.weight in edges for call in one.calls}
    averages = (node for node in graph.operations.nodes if node.target in AVERAGES)
    return calls | {node for node in averages if after[node] and after[node] <= edges}


def _neighbours(graph: Graph, layers: Sequence[Layer]) -> tuple[dict[fx.Node, set[str]], dict[fx.Node, set[str]]]:
    """For each operation, the layers that it depends on, and those that depend on it, without itself."""
    weight_of = {call: one.weight for one in layers for call in one.calls}

    def own(node: fx.Node) -> set[str]:
        return {weight_of[node]} if node in weight_of else set()

    before: dict[fx.Node, set[str]] = {}
    for node in graph.operations.nodes:
        before[node] = set().union(*(before[source] | own(source) for source in node.all_input_nodes))
    after: dict[fx.Node, set[str]] = {}
    for node in reversed(graph.operations.nodes):
        after[node] = set().union(*(after[user] | own(user) for user in node.users))
    return before, after
