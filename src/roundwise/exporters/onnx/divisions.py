"""Divisions of whole numbers in ONNX, as Python and PyTorch do them.

- Python rounds the quotient of sizes down; ONNX's Div rounds towards zero. So a // b is (a − a mod b) / b, which is
  exact: ONNX's Mod has the sign of the divisor, as Python's.
- A processor cannot divide by 0, nor the smallest whole number by −1: the process of ONNX Runtime would end. A divisor
  that is computed may have these values for some inputs. Where it has, the quotient is that of another divisor, times a
  sign: a / −1 = −(a / 1), and a / 0, for which PyTorch raises an error, is a.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.onnx_opset import opset21

_SIGNED = frozenset({ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64})
_WHOLE = _SIGNED | {ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}


def floor_divide(values: Any, divisor: Any) -> Any:
    """A size divided by another, rounded down."""
    return opset21.Div(opset21.Sub(values, opset21.Mod(values, divisor)), divisor)


def divide_safely(model: ir.Model) -> None:
    """Rewrite the divisions of whole numbers whose divisor is computed, or is 0 or −1."""
    for node in list(model.graph):
        if node.op_type in ("Div", "Mod") and (dtype := _dtype(node)) in _WHOLE and not _is_safe(node.inputs[1]):
            _make_safe(model.graph, node, dtype)


def _dtype(node: ir.Node) -> ir.DataType | None:
    return next((value.dtype for value in (*node.inputs, *node.outputs) if value is not None and value.dtype), None)


def _is_safe(divisor: ir.Value | None) -> bool:
    tensor = None if divisor is None else ir.convenience.get_const_tensor(divisor)
    return tensor is not None and not np.isin(tensor.numpy(), (0, -1)).any()


def _make_safe(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    divisor = node.inputs[1]
    made: list[ir.Node] = []

    def add(operation: str, *inputs: ir.Value | None) -> ir.Value:
        one = ir.node(operation, inputs, name=f"{node.name}.safe{len(made)}")
        made.append(one)
        one.outputs[0].dtype = ir.DataType.BOOL if operation in ("Equal", "Or") else dtype
        return one.outputs[0]

    @functools.cache
    def number(value: int) -> ir.Value:
        name = f"{node.name}.{value}".replace("-", "minus")
        tensor = ir.Tensor(np.array(value, dtype.numpy()), name=name)
        constant = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(dtype), const_value=tensor)
        graph.register_initializer(constant)
        return constant

    one, wrong = number(1), add("Equal", divisor, number(0))
    negative = add("Equal", divisor, number(-1)) if dtype in _SIGNED else None
    if negative is not None:
        wrong = add("Or", wrong, negative)
    safe = add("Where", wrong, one, divisor)
    sign = add("Where", negative, number(-1), one) if negative is not None and node.op_type == "Div" else None
    graph.insert_before(node, made)
    node.replace_input_with(1, safe)
    if sign is not None:
        result = node.outputs[0]
        signed = ir.node("Mul", [result, sign], name=f"{node.name}.signed")
        signed.outputs[0].shape, signed.outputs[0].type = result.shape, result.type
        graph.insert_after(node, signed)
        ir.convenience.replace_all_uses_with(result, signed.outputs[0], replace_graph_outputs=True)
        signed.replace_input_with(0, result)
