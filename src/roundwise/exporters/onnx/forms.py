"""Forms of operations that ONNX Runtime runs right in its default session.

With `ceil_mode`, PyTorch leaves out a last window that would lie in the padding alone, and ONNX does not: a Slice drops
it.

ONNX Runtime rewrites a graph when it loads it, and some of its rewrites change what the graph computes (release 1.31):

- It takes a Pad with zeros into the MaxPool behind it, whose padding counts as minus infinity. It does so only if Pad
  has no list of axes: so Pad gets one.
- Its integer AveragePool divides the windows at the border wrongly if `ceil_mode` and `count_include_pad` are 1. Where
  nothing is padded, `count_include_pad` has no meaning and becomes 0. Elsewhere a Max with the lowest number, which
  changes nothing, stands between AveragePool and QuantizeLinear, so that the pool runs in float.
- If a layer's input and weight are dequantized, it stores the bias as an integer of 32 bits in steps of input scale
  times weight scale, and does not look whether the bias fits: large biases wrap around. Such a bias becomes an Add
  behind the layer. (`engine/biases.py` chooses scales so that this is hardly ever necessary.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from roundwise.runtimes.interface import Array
from roundwise.targets import Target

MOVES = frozenset(
    {
        *("Cast", "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad"),
        *("QuantizeLinear", "Relu", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    }
)
"""Operations through which ONNX Runtime may move DequantizeLinear, or which it may drop."""


def use_safe_forms(model: ir.Model, target: Target) -> None:
    """Rewrite the operations of a graph that ONNX Runtime would change; the graph computes the same."""
    for node in list(model.graph):
        match node.op_type:
            case "Pad":
                _name_axes(model.graph, node)
            case "MaxPool":
                _drop_windows_in_padding(model.graph, node)
            case "AveragePool":
                _drop_windows_in_padding(model.graph, node)
                _pool_in_float(model.graph, node)
            case "Conv" | "ConvTranspose" | "Gemm":
                _add_large_bias(model.graph, node, target.bias_bits)


def _name_axes(graph: ir.Graph, node: ir.Node) -> None:
    """Give a Pad before a MaxPool the list of all axes."""
    padded = node.inputs[0]
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if axes is not None or padded is None or padded.shape is None or not any(_poolings(node)):
        return
    value = node.inputs[2] if len(node.inputs) > 2 else None
    every = _constant(graph, f"{node.name}.axes", np.arange(len(padded.shape), dtype=np.int64))
    node.resize_inputs(4)
    node.replace_input_with(2, value)
    node.replace_input_with(3, every)


def _poolings(node: ir.Node) -> Iterator[ir.Node]:
    """The MaxPools that read the result of a node, perhaps after it was moved."""
    for user in node.outputs[0].consumers():
        if user.op_type == "MaxPool":
            yield user
        elif user.op_type in MOVES or user.op_type == "DequantizeLinear":
            yield from _poolings(user)


def _drop_windows_in_padding(graph: ir.Graph, node: ir.Node) -> None:
    """Keep as many windows as PyTorch does: those that begin before the padding behind the values.

    With size n, padding p before the values and stride s these are the first ⌈(n + p) / s⌉. A window of k values can
    begin in the padding only if s + p > k.
    """
    settings, result = node.attributes, node.outputs[0]
    kernel = np.array(settings.get_ints("kernel_shape", []))
    strides = np.array(settings.get_ints("strides", [1] * len(kernel)))
    pads = np.array(settings.get_ints("pads", [0, 0] * len(kernel)))[: len(kernel)]
    widths = (kernel - 1) * np.array(settings.get_ints("dilations", [1] * len(kernel))) + 1
    if settings.get_int("ceil_mode", 0) == 0 or not (strides + pads > widths).any():
        return
    dims = len(kernel)
    numbers = {
        name: _constant(graph, f"{node.name}.{name}", np.array(values, np.int64))
        for name, values in {"reach": pads + strides - 1, "strides": strides, "zeros": 0 * kernel}.items()
    }
    axes = _constant(graph, f"{node.name}.axes", np.arange(2, 2 + dims))
    shape = ir.node("Shape", [node.inputs[0]], {"start": 2}, name=f"{node.name}.sizes")
    reach = ir.node("Add", [shape.outputs[0], numbers["reach"]], name=f"{node.name}.reached")
    windows = ir.node("Div", [reach.outputs[0], numbers["strides"]], name=f"{node.name}.windows")
    last = ir.node("Slice", [result, numbers["zeros"], windows.outputs[0], axes], name=f"{node.name}.kept")
    for made in (shape, reach, windows):
        made.outputs[0].shape, made.outputs[0].type = ir.Shape([dims]), ir.TensorType(ir.DataType.INT64)
    last.outputs[0].shape, last.outputs[0].type = result.shape, result.type
    graph.insert_after(node, [shape, reach, windows, last])
    ir.convenience.replace_all_uses_with(result, last.outputs[0], replace_graph_outputs=True)
    last.replace_input_with(0, result)
    result.shape = ir.Shape([*(result.shape or [None, None])[:2], *[None] * dims])


def _pool_in_float(graph: ir.Graph, node: ir.Node) -> None:
    settings = node.attributes
    if settings.get_int("ceil_mode", 0) == 0 or settings.get_int("count_include_pad", 0) == 0:
        return
    if not any(settings.get_ints("pads", [])):
        settings["count_include_pad"] = ir.AttrInt64("count_include_pad", 0)
        return
    result = node.outputs[0]
    dtype = result.dtype or ir.DataType.FLOAT
    lowest = _constant(graph, f"{node.name}.lowest", np.array(-np.inf, dtype.numpy()))
    _insert_behind(graph, node, "Max", lowest)


def _add_large_bias(graph: ir.Graph, node: ir.Node, bias_bits: int | None) -> None:
    """Add a bias behind its layer if the integer that ONNX Runtime makes of it could overflow."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    numbers, weight = _number(bias), _number(_scale(node.inputs[1]))
    inputs = [scale for value in _dequantized(node.inputs[0]) if (scale := _number(_scale(value))) is not None]
    if numbers is None or weight is None or not inputs or bias_bits is None:
        return
    if node.op_type == "Gemm" and (
        node.attributes.get_float("beta", 1.0) != 1.0 or node.attributes.get_float("alpha", 1.0) != 1.0
    ):
        return
    step = min(float(scale.min()) for scale in inputs) * weight.astype(np.float64).reshape(-1)
    with np.errstate(divide="ignore"):
        steps = np.abs(numbers.astype(np.float64)).reshape(-1) / (
            step if len(step) in (1, numbers.size) else step.min()
        )
    if not steps.size or float(steps.max()) < 2.0 ** (bias_bits - 2):
        return
    dims = 0 if node.op_type == "Gemm" else len(node.inputs[1].shape or ()) - 2  # type: ignore[union-attr]
    name = f"{bias.name}.added" if bias is not None else ""
    added = _constant(graph, name, numbers.reshape(1, -1, *[1] * dims))
    node.resize_inputs(2)
    _insert_behind(graph, node, "Add", added)


def _scale(value: ir.Value | None) -> ir.Value | None:
    """The scale of a value that is dequantized, perhaps cast afterwards."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type == "Cast":
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    return producer.inputs[1] if producer is not None and producer.op_type == "DequantizeLinear" else None


def _dequantized(value: ir.Value | None) -> Iterator[ir.Value]:
    """The dequantized values that a value is made of by moves."""
    producer = value.producer() if value is not None else None
    if producer is None or value is None:
        return
    if producer.op_type == "DequantizeLinear":
        yield value
    elif producer.op_type in MOVES:
        for source in producer.inputs if producer.op_type == "Concat" else producer.inputs[:1]:
            yield from _dequantized(source)


def _number(value: ir.Value | None) -> Array | None:
    """The content of a constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def _insert_behind(graph: ir.Graph, node: ir.Node, operation: str, constant: ir.Value) -> None:
    """Insert an operation with a constant between a node and all that reads its result."""
    result = node.outputs[0]
    behind = ir.node(operation, [result, constant], name=f"{node.name}.{operation.lower()}")
    behind.outputs[0].shape, behind.outputs[0].type = result.shape, result.type
    graph.insert_after(node, behind)
    ir.convenience.replace_all_uses_with(result, behind.outputs[0], replace_graph_outputs=True)
    behind.replace_input_with(0, result)


def _constant(graph: ir.Graph, name: str, values: Array) -> ir.Value:
    """A new constant of the graph."""
    free, count = name, 0
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    tensor = ir.Tensor(np.array(values, order="C"), name=free)
    value = ir.Value(name=free, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
