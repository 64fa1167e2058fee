"""Outputs that are the network's own tensors become copies: what a caller does to an output changes no later call.

A layer whose input is constant is computed once (`normalize.py`), and its result is stored. The model computes it anew
in each call, so its caller may overwrite it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from roundwise.graph.graph import Graph, may_be_view

aten = torch.ops.aten


def own_outputs(graph: Graph) -> Graph:
    """A graph whose outputs share no memory with its constants; the graph itself if that is so already."""
    if not any(_is_stored(node) for node in _output(graph).all_input_nodes):
        return graph
    graph = graph.copy()
    output = _output(graph)
    for node in output.all_input_nodes:
        if _is_stored(node):
            with graph.operations.inserting_before(output):
                copied = graph.operations.call_function(aten.clone.default, (node,))
            copied.meta.update(node.meta)
            output.replace_input_with(node, copied)
    return graph


def _output(graph: Graph) -> fx.Node:
    output: fx.Node = next(iter(graph.operations.find_nodes(op="output")))
    return output


def _is_stored(node: Any) -> bool:
    """Whether a value is a constant or a view of one."""
    while isinstance(node, fx.Node) and node.op == "call_function" and may_be_view(node) and node.args:
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "get_attr"
