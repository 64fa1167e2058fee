"""Bring real offsets of activations into a form that has integer zero points.

An activation with a real offset is quantized as x̂ + δ with x̂ = fake_quantize(x − δ), where x̂ has an integer zero point
(`methods/training/lsq_plus.py`).

    x → quantizer with a real offset → readers        x → x − δ → quantizer ┬→ layers, their biases raised by δ W 1
                                                                            └→ + δ → all other readers

A bias can take δ up only if every one of its products reads a quantized value. At a border that a convolution pads with
zeros some products read 0 instead, so padded convolutions are among the other readers, and read real numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.edit import insert_after, insert_before, reroute
from roundwise.graph.graph import Graph

aten = torch.ops.aten


def apply_shifts(graph: Graph, shifts: Mapping[str, float], weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Insert subtractions of δ, and make up for them behind the quantizers.

    Args:
        graph: is changed. What is quantized is then the result of a subtraction.
        shifts: δ by the name of the operation or input.
        weights: of all layers, as matrices `[groups, rows, cols]` of the numbers that their codes stand for.

    Returns:
        For each name: the name of the operation that is now to be quantized, and then the names of those that read
        δ + x̂ in float.
    """
    found = {}
    for name, shift in shifts.items():
        node = next(one for one in graph.operations.nodes if one.name == name)
        readers = list(node.users)
        moved = _after(graph, node, aten.sub.Tensor, shift)
        reroute(node, moved, readers)
        absorbed: set[fx.Node] = set()
        for layer in find_layers(graph):
            if _takes_up(layer, moved):
                rows = weights[layer.weight].double().sum(-1).flatten()
                bias = graph.constants[str(layer.own_bias)]
                graph.constants[str(layer.own_bias)] = (bias.double() + shift * rows).to(bias.dtype)
                absorbed.update(layer.calls)
        others = [reader for reader in readers if reader not in absorbed]
        if others:
            back = insert_after(graph, moved, aten.add.Tensor, shift)
            reroute(back, moved, [reader for reader in back.users if reader in absorbed])
        found[name] = [moved.name, *(reader.name for reader in others)]
    return found


def _takes_up(layer: Layer, source: fx.Node) -> bool:
    """Whether the layer's bias can take up a constant that is missing in what the layer reads."""
    reads = all(call.args[0] is source for call in layer.calls)
    return reads and layer.own_bias is not None and not layer.map.pads and not layer.map.transposed


def _after(graph: Graph, node: fx.Node, *operation: Any) -> fx.Node:
    """A new operation of a value that nobody reads yet, as early as possible, but behind all inputs."""
    following = node.next
    while following.op in ("placeholder", "get_attr"):
        following = following.next
    return insert_before(graph, following, operation[0], node, *operation[1:])
