"""Emit the quantized graph: replace each quantized weight by integer codes and an operation that dequantizes them.

    codes, scale, zero point ──▶ roundwise.dequantize… ──▶ the layer's weight

The codes have the shape of the weight if the granularity allows it: per tensor, per channel, and per group of a linear
layer. Otherwise (per group of a convolution, per channel of a grouped transposed convolution) the codes are the layer's
matrix `[groups · rows, cols]`, and reshapes after the operation give the result the shape of the weight.

The operation is directly before the layer, so that only one layer's float weight exists at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx

from roundwise.artifacts import dialect
from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph
from roundwise.numerics.grid import Grid
from roundwise.numerics.quantizer import Quantizer

aten = torch.ops.aten

CODES, SCALE, ZERO_POINT = "_codes", "_scale", "_zero_point"
"""Suffixes of a quantized weight's constants: the name of the weight, then one of these."""


@final
@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """The codes, the grid and the bias of one quantized layer.

    Attributes:
        layer: the layer.
        codes: in any integer dtype that holds them.
        grid: the grid of the codes.
        bias_shift: to be added to the layer's bias; None if the bias does not change.
    """

    layer: Layer
    codes: Int[Tensor, "groups rows cols"]
    grid: Grid
    bias_shift: Float[Tensor, "groups rows"] | None = None

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias plus the shift; None if the layer has no bias."""
        bias = self.layer.map.bias
        if self.bias_shift is None or bias is None:
            return bias
        return (bias.to(torch.promote_types(bias.dtype, torch.float32)) + self.bias_shift.flatten()).to(bias.dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight tensor that the codes stand for."""
        return self.layer.map.to_weight(self.grid.dequantize(self.codes)).to(dtype)


def emit(graph: Graph, weights: list[QuantizedWeight], quantizers: Mapping[fx.Node, Quantizer] | None = None) -> Graph:
    """Return a graph in which the layers read codes instead of float weights, and quantizers follow their operations.

    If an operation other than the layer reads the same weight, it keeps the float weight.

    The result shares no memory with the graph, and so none with the model that the graph was captured from.
    """
    emitted = graph.copy()
    nodes = {node.name: node for node in emitted.operations.nodes}
    for weight in weights:
        calls = [nodes[call.name] for call in weight.layer.calls]
        source = _dequantize(emitted, weight, before=calls[0])
        for call in calls:
            call.args = (call.args[0], source, *call.args[2:])
        if weight.layer.own_bias is not None and weight.bias is not None:
            emitted.constants[weight.layer.own_bias] = weight.bias
    insert_quantizers(emitted, {node.name: quantizer for node, quantizer in (quantizers or {}).items()})
    emitted.prune()
    for name in emitted.constants.keys() & graph.constants.keys():
        value = emitted.constants[name]
        if isinstance(value, Tensor):  # a constant may also be the sub-graph of a branch or loop
            emitted.constants[name] = value.clone()
    return emitted


def insert_quantizers(graph: Graph, quantizers: Mapping[str, Quantizer]) -> None:
    """Insert quantizers after the operations and inputs with the given names; changes the graph."""
    operations = graph.operations
    first = next(node for node in operations.nodes if node.op not in ("placeholder", "get_attr"))
    for node in list(operations.nodes):
        quantizer = quantizers.get(node.name)
        if quantizer is None:
            continue
        book = quantizer.codebook
        grid = (quantizer.scale, quantizer.zero_point, book.qmin, book.qmax)
        with operations.inserting_before(first if node.op == "placeholder" else node.next):
            codes = operations.call_function(dialect.quantize, (node, *grid, book.dtype))
            real = operations.call_function(dialect.dequantize, (codes, *grid, node.meta["val"].dtype))
        node.replace_all_uses_with(real, delete_user_cb=lambda user, codes=codes: user is not codes)


def without_quantizers(graph: Graph) -> Graph:
    """A copy of the graph with all activations in float; weights stay quantized."""
    graph = graph.copy()
    for node in graph.operations.nodes:
        codes = node.args[0] if node.target is dialect.dequantize else None
        if isinstance(codes, fx.Node) and codes.target is dialect.quantize:
            values = codes.args[0]
            assert isinstance(values, fx.Node)
            node.replace_all_uses_with(values)
    graph.prune()
    return graph


def _dequantize(graph: Graph, weight: QuantizedWeight, before: fx.Node) -> fx.Node:
    """Add the constants of a quantized weight, and directly before the layer the operations that dequantize it."""
    name, layer, grid, book = weight.layer.weight, weight.layer.map, weight.grid, weight.grid.codebook
    groups, rows, blocks = grid.granularity_shape
    _, matrix_rows, cols = layer.matrix_shape
    range_and_dtype = (book.qmin, book.qmax, graph.constants[name].dtype)
    codes = weight.codes.to(book.dtype)
    per_tensor, per_channel = groups == rows == blocks == 1, blocks == 1
    own_shape = per_tensor or (per_channel and not (layer.transposed and layer.groups > 1))
    codes = (layer.to_weight(codes) if own_shape else codes.reshape(-1, cols)).contiguous()

    stored = graph.add_constant(name + CODES, codes)

    def call(target: Any, *args: Any) -> fx.Node:
        with graph.operations.inserting_before(before):
            return graph.operations.call_function(target, args)

    if per_tensor:
        node = call(dialect.dequantize, stored, grid.scale.item(), int(grid.zero_point), *range_and_dtype)
    else:
        shape = (-1,) if per_channel else (-1, blocks)
        scale = graph.add_constant(name + SCALE, grid.scale.reshape(shape))
        zero_point = graph.add_constant(name + ZERO_POINT, grid.zero_point.to(torch.int64).reshape(shape))
        if per_channel:
            axis = 1 if own_shape and layer.transposed else 0
            node = call(dialect.dequantize_per_channel, stored, scale, zero_point, axis, *range_and_dtype)
        else:
            node = call(dialect.dequantize_per_group, stored, scale, zero_point, cols // blocks, *range_and_dtype)
    if not own_shape:
        if layer.transposed:
            # [groups·rows, in/groups·taps] → [groups, rows, in/groups, *kernel], mirrored, → [in, rows, *kernel]
            node = call(aten.view.default, node, [layer.groups, matrix_rows, -1, *layer.kernel])
            node = call(aten.flip.default, node, list(range(3, 3 + layer.dims)))
            node = call(aten.transpose.int, node, 1, 2)
            node = call(aten.reshape.default, node, list(layer.weight_shape))
        elif layer.dims:
            node = call(aten.view.default, node, list(layer.weight_shape))
    return node


def packed_bits(graph: Graph) -> dict[str, int]:
    """The number of bits per element in a file, for each constant that holds codes or zero points, by its name.

    It is 0 for zero points that are all 0. A file stores all other constants unchanged.
    """
    packed: dict[str, int] = {}
    for node in graph.operations.nodes:
        operation = dialect.operation_of(node)
        if operation not in dialect.DEQUANTIZERS:
            continue
        arguments = operation.arguments(node)
        bits = (arguments["qmax"] - arguments["qmin"]).bit_length()
        codes, zero_point = arguments["codes"], arguments["zero_point"]
        if bits > 16 or graph.constant(codes) is None:
            continue
        packed[str(codes.target)] = bits
        values = graph.constant(zero_point)
        if values is not None and 0 <= int(values.min()) <= int(values.max()) < 1 << bits:
            packed[str(zero_point.target)] = bits if values.any() else 0
    return packed
