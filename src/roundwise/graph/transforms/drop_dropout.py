"""Dropout does nothing in evaluation: drop it before inference.

A captured graph keeps dropout, with its probability, so that the network can be trained on. Whatever is computed for
inference starts without: a layer and the ReLU after it must be neighbours, and a weight behind dropout is a constant.
"""

from __future__ import annotations

import torch
from torch import fx

from roundwise.graph.analysis.activations import kind_of
from roundwise.graph.graph import Graph, bind
from roundwise.graph.operators import DROPOUTS
from roundwise.graph.training import DroppedDropout

aten = torch.ops.aten


def drop_dropout(graph: Graph) -> Graph:
    """Return an equal graph without dropout.

    Dropout that is active in evaluation too draws random numbers, and stays.
    """
    graph = graph.copy()
    for node in list(graph.operations.nodes):
        if node.target not in DROPOUTS or bind(node)["train"]:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        readers = () if len(source.users) == 1 else tuple(user.name for user in node.users)
        record = DroppedDropout(kind_of(node), float(bind(node)["p"]), readers)
        source.meta["dropout"] = (*source.meta.get("dropout", ()), record)
        if makes_distinct_output(node):
            node.target, node.args, node.kwargs = aten.clone.default, (source,), {}
        else:
            node.replace_all_uses_with(source)
            graph.operations.erase_node(node)
    return graph


def makes_distinct_output(node: fx.Node) -> bool:
    """Whether an operation that changes no number must stay, for one output of the network to be a tensor of its own.

    Without the operation, the output would be the same tensor as an input, a constant or another output.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return _is_output(node) and (source.op != "call_function" or _is_output(source))


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)
