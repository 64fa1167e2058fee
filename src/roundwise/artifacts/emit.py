"""Codes and grids back into the graph: each quantized weight becomes a dequantize operation on integer codes.

    codes ──▶ quantized_decomposed.dequantize_per_{tensor, channel, channel_group} ──▶ the layer's weight

This is the dialect of PyTorch's export quantization (PT2E), which `torch.compile`, ExecuTorch and the ONNX exporter
know. Per tensor and per channel the codes have the weight's own shape, and the operation gives the weight itself; where
the granularity has no axis in that shape (per group on a convolution, per channel on a grouped transposed one) the
codes are the matrix `[groups · rows, cols]`, and the weight is a view of what the operation gives. It stands directly
before the layer, so that no more than one layer's float weights exist at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.ao.quantization.fx._decomposed  # registers the operations
from jaxtyping import Float, Int
from torch import Tensor, fx

from roundwise.graph.analysis.layers import Layer
from roundwise.graph.graph import Graph, bind
from roundwise.numerics.grid import Grid
from roundwise.numerics.quantizer import Quantizer

dialect = torch.ops.quantized_decomposed
aten = torch.ops.aten


@final
@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A layer's codes `[groups, rows, cols]`, of any integer dtype that holds them, and the grid they are on.

    Attributes:
        bias_shift: what the layer's own bias takes up, `[groups, rows]`; None where it stays as it is.
    """

    layer: Layer
    codes: Int[Tensor, "groups rows cols"]
    grid: Grid
    bias_shift: Float[Tensor, "groups rows"] | None = None

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias, shifted."""
        bias = self.layer.map.bias
        if self.bias_shift is None or bias is None:
            return bias
        return (bias.to(torch.promote_types(bias.dtype, torch.float32)) + self.bias_shift.flatten()).to(bias.dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight tensor that the codes stand for."""
        return self.layer.map.to_weight(self.grid.dequantize(self.codes)).to(dtype)


def emit(graph: Graph, weights: list[QuantizedWeight], quantizers: Mapping[fx.Node, Quantizer] | None = None) -> Graph:
    """Return the graph with each of the weights given by codes, and with quantizers behind the operations they are for.

    Other uses of a shared weight keep the float one.

    The result shares no memory with the graph, and so none with the model that it was captured from.
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
        if isinstance(value, Tensor):  # and not a piece of control flow
            emitted.constants[name] = value.clone()
    return emitted


def insert_quantizers(graph: Graph, quantizers: Mapping[str, Quantizer]) -> None:
    """Put quantizers behind the operations and inputs of the given names; changes the graph."""
    operations = graph.operations
    first = next(node for node in operations.nodes if node.op not in ("placeholder", "get_attr"))
    for node in list(operations.nodes):
        quantizer = quantizers.get(node.name)
        if quantizer is None:
            continue
        dtype = node.meta["val"].dtype
        with operations.inserting_before(first if node.op == "placeholder" else node.next):
            source = node
            if dtype != torch.float32:
                source = operations.call_function(aten.to.dtype, (node, torch.float32))
            codes = operations.call_function(dialect.quantize_per_tensor.default, (source, *quantizer.arguments))
            real = operations.call_function(dialect.dequantize_per_tensor.default, (codes, *quantizer.arguments))
            if dtype != torch.float32:
                real = operations.call_function(aten.to.dtype, (real, dtype))
        own = codes if source is node else source
        node.replace_all_uses_with(real, delete_user_cb=lambda user, own=own: user is not own)


def without_quantizers(graph: Graph) -> Graph:
    """The graph with everything between operations left in float; weights stay as they are."""
    graph = graph.copy()
    for node in graph.operations.nodes:
        codes = node.args[0] if node.target is dialect.dequantize_per_tensor.default else None
        if isinstance(codes, fx.Node) and codes.target is dialect.quantize_per_tensor.default:
            source = codes.args[0]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
    graph.prune()
    return graph


def _dequantize(graph: Graph, weight: QuantizedWeight, before: fx.Node) -> fx.Node:
    """Add the constants, and directly before the layer the operations, that give its weight."""
    name, layer, grid, book = weight.layer.weight, weight.layer.map, weight.grid, weight.grid.codebook
    groups, rows, blocks = grid.granularity_shape
    _, matrix_rows, cols = layer.matrix_shape
    limits = (book.qmin, book.qmax, book.dtype)
    codes = weight.codes.to(book.dtype)
    per_tensor, per_channel = groups == rows == blocks == 1, blocks == 1
    own_shape = per_tensor or (per_channel and not (layer.transposed and layer.groups > 1))
    codes = (layer.to_weight(codes) if own_shape else codes.reshape(-1, cols)).contiguous()

    stored = graph.add_constant(f"{name}_codes", codes)

    def call(target: Any, *args: Any) -> fx.Node:
        with graph.operations.inserting_before(before):
            return graph.operations.call_function(target, args)

    if per_tensor:
        node = call(dialect.dequantize_per_tensor.default, stored, grid.scale.item(), int(grid.zero_point), *limits)
    else:
        shape = (-1,) if per_channel else (-1, blocks)
        scale = graph.add_constant(f"{name}_scale", grid.scale.reshape(shape))
        zero_point = graph.add_constant(f"{name}_zero_point", grid.zero_point.to(torch.int64).reshape(shape))
        if per_channel:
            axis = 1 if own_shape and layer.transposed else 0
            node = call(dialect.dequantize_per_channel.default, stored, scale, zero_point, axis, *limits)
        else:
            node = call(
                dialect.dequantize_per_channel_group.default,
                *(stored, scale, zero_point, *limits, cols // blocks, torch.float32),
            )
    if not own_shape:
        if layer.transposed:
            # [groups·rows, in/groups·taps] → [groups, rows, in/groups, *kernel], mirrored, → [in, rows, *kernel]
            node = call(aten.view.default, node, [layer.groups, matrix_rows, -1, *layer.kernel])
            node = call(aten.flip.default, node, list(range(3, 3 + layer.dims)))
            node = call(aten.transpose.int, node, 1, 2)
            node = call(aten.reshape.default, node, list(layer.weight_shape))
        elif layer.dims:
            node = call(aten.view.default, node, list(layer.weight_shape))
    dtype = graph.constants[weight.layer.weight].dtype
    return node if dtype == torch.float32 else call(aten.to.dtype, node, dtype)


def packed_bits(graph: Graph) -> dict[str, int]:
    """The codes and zero points of the graph, and how many bits each number needs: none where all zero points are 0."""
    packed = {}
    for node in graph.operations.nodes:
        if node.op == "call_function" and str(node.target).startswith("quantized_decomposed.dequantize"):
            arguments = bind(node)
            bits = (arguments["quant_max"] - arguments["quant_min"]).bit_length()
            for name in ("input", "zero_points"):
                source = arguments.get(name)
                value = graph.constant(source)
                if not isinstance(source, fx.Node) or value is None or bits > 16:
                    continue
                if name == "input":
                    packed[str(source.target)] = bits
                elif 0 <= int(value.min()) <= int(value.max()) < 1 << bits:
                    packed[str(source.target)] = bits if value.any() else 0
    return packed
