"""The quantized weights of an ONNX graph, as integer constants in front of the layers that they belong to.

    codes, scale, zero point ──▶ DequantizeLinear ──▶ Conv, Gemm, MatMul, …

`torch.onnx` translates a dequantize operation as it is: one byte for each code, and a Reshape or Transpose behind it.
`store_weights` builds each weight anew, from the tensors of the program:

1. The codes go into a type of the target: the narrowest that holds their range (INT4 and UINT4 up to 4 bits, two to a
   byte; then INT8, UINT8, INT16, UINT16), or where activations are quantized the one that integer kernels multiply
   (INT8 and UINT8). 2- and 3-bit codes are stored as 4-bit at least: opset 21 has nothing narrower. Two kinds of codes
   must not be multiplied as integers, and are stored in a type for which there are no kernels, 8-bit ones in 16 bits:
   those whose products could overflow the sums (tens of thousands of inputs), and those with a scale per group.
2. The zero point gets the type of the codes, as ONNX demands; the scale keeps the type of the real numbers.
3. A Transpose, Reshape or Cast that follows is done here, on the codes, where that changes no value. So runtimes find
   DequantizeLinear directly before Conv, Gemm or MatMul, which is the pattern that they fuse.
4. A weight that is used several times is stored once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, final

import numpy as np
import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from roundwise.artifacts import dialect
from roundwise.artifacts.emit import CODES
from roundwise.errors import ExportError
from roundwise.exporters.sensitivity import quantizes_activations
from roundwise.runtimes.interface import Array
from roundwise.targets import IntegerType, Target

LARGEST_INPUT, LARGEST_SUM = 2**8 - 1, 2**31 - 1
"""The largest 8-bit code, and the largest sum of products in kernels of integers."""


@final
@dataclass(frozen=True)
class OnnxWeight:
    """A quantized weight as ONNX stores it.

    Attributes:
        name: of the codes, in the program.
        codes: integers, in the weight's shape and NumPy's type of their own.
        scale: float32 or float16: no dimension (one scale for all), one (along `axis`), or as many as the codes (then
            `codes.shape[axis]` is a multiple of `scale.shape[axis]` and each scale holds for a block of codes).
        zero_point: integers in the shape of `scale`.
        axis: along which the scale changes; None if there is one scale.
        onnx_type: in which codes and zero point are stored.
    """

    name: str
    codes: Array
    scale: Array
    zero_point: Array
    axis: int | None
    onnx_type: ir.DataType

    @property
    def block_size(self) -> int:
        """How many neighbouring codes along `axis` share a scale; 0 where a scale is not for a block."""
        if self.axis is None or self.scale.ndim <= 1:
            return 0
        return int(self.codes.shape[self.axis] // self.scale.shape[self.axis])

    def transposed(self, order: tuple[int, ...]) -> OnnxWeight:
        """The same weight with its dimensions in another order."""
        axis = None if self.axis is None else order.index(self.axis)
        blocks = self.scale.ndim > 1
        return replace(
            self,
            codes=self.codes.transpose(order),
            scale=self.scale.transpose(order) if blocks else self.scale,
            zero_point=self.zero_point.transpose(order) if blocks else self.zero_point,
            axis=axis,
        )

    def reshaped(self, shape: tuple[int, ...]) -> OnnxWeight | None:
        """The same weight in another shape; None where the scales would no longer lie along one of its axes."""
        codes = self.codes.reshape(shape)
        if self.axis is None:
            return replace(self, codes=codes)
        if self.scale.ndim > 1:
            return None
        before, size = math.prod(self.codes.shape[: self.axis]), self.codes.shape[self.axis]
        for axis, length in enumerate(codes.shape):
            if length == size and math.prod(codes.shape[:axis]) == before:
                return replace(self, codes=codes, axis=axis)
        return None

    def cast(self, onnx_type: ir.DataType) -> OnnxWeight | None:
        """The same weight as real numbers of another type; None where a scale is not exact in it.

        (q − z) · s with an exact s is rounded once, as in `(float32 product).to(float16)`: both give the same number.
        """
        if onnx_type not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return None
        scale = self.scale.astype(onnx_type.numpy())
        return replace(self, scale=scale) if np.array_equal(scale.astype(np.float32), self.scale) else None


def store_weights(model: ir.Model, program: ExportedProgram, target: Target) -> set[ir.Value]:
    """Replace every dequantized constant of the graph by an `OnnxWeight`; returns the initialisers that hold codes."""
    operations = {dialect.operator_for(operation): operation for operation in dialect.DEQUANTIZERS}
    constants, integers = _constants(program), quantizes_activations(program)
    values = {output.name: output for node in model.graph for output in node.outputs}
    first_of: dict[Any, ir.Value] = {}  # dequantize operations that give the same weight → the first of them
    weights: list[tuple[ir.Value, OnnxWeight]] = []
    for node in program.graph.nodes:
        operation = operations.get(node.target)
        if operation is None or node.args[0].name not in constants:
            continue
        value = values[node.name]
        arguments = {
            name: constants[argument.name][1] if isinstance(argument, torch.fx.Node) else argument
            for name, argument in operation.arguments(node).items()
        }
        key = (operation.name, *(_identity(argument) for argument in arguments.values()))
        if key in first_of:
            ir.convenience.replace_all_uses_with(value, first_of[key], replace_graph_outputs=True)
            continue
        first_of[key] = value
        weight = _read_weight(constants[node.args[0].name][0], operation, arguments, target, integers=integers)
        weights.append((_before_cast(value), weight))
    return {_insert_weight(model.graph, value, weight) for value, weight in weights}


def _before_cast(value: ir.Value) -> ir.Value:
    """What the translation of a dequantize operation gives before it is cast to the network's dtype."""
    producer = value.producer()
    assert producer is not None
    source = producer.inputs[0] if producer.op_type == "Cast" else value
    assert source is not None
    return source


def _insert_weight(graph: ir.Graph, value: ir.Value, weight: OnnxWeight) -> ir.Value:
    """Put DequantizeLinear in the place of `value`; returns the initialiser of the codes."""
    replaced = [value]
    while (following := _absorb(weight, replaced)) is not None:
        weight, replaced = following
    name = _free_name(graph, weight.name.removesuffix(CODES))
    before = value.producer()
    assert before is not None
    initializers = [
        ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        for tensor in (
            _tensor(weight.codes, weight.onnx_type, name),
            ir.Tensor(np.array(weight.scale, order="C"), name=f"{name}.scale"),
            _tensor(weight.zero_point, weight.onnx_type, f"{name}.zero_point"),
        )
    ]
    for initializer in initializers:
        graph.register_initializer(initializer)
    attributes = {} if weight.axis is None else {"axis": weight.axis}
    if weight.block_size:
        attributes["block_size"] = weight.block_size
    node = ir.node("DequantizeLinear", initializers, attributes, name=f"{name}.dequantize")
    (real,) = node.outputs
    real.name = f"{name}.dequantized"
    real.shape = ir.Shape(weight.codes.shape)
    real.type = ir.TensorType(ir.DataType.from_numpy(weight.scale.dtype))
    graph.insert_before(before, node)
    for old in replaced:
        ir.convenience.replace_all_uses_with(old, real, replace_graph_outputs=True)
    return initializers[0]


def _absorb(weight: OnnxWeight, values: list[ir.Value]) -> tuple[OnnxWeight, list[ir.Value]] | None:
    """Do on the codes what every user of the weight does next to it; None where users differ or it cannot be done."""
    users = [user for value in values for user in value.consumers()]
    if not users or any(value.is_graph_output() for value in values):
        return None
    results = [_apply(weight, user) for user in users]
    settings = {(user.op_type, str(user.attributes), str(user.outputs[0].shape)) for user in users}
    if results[0] is None or len(settings) > 1:
        return None
    return results[0], [user.outputs[0] for user in users]


def _apply(weight: OnnxWeight, user: ir.Node) -> OnnxWeight | None:
    """The weight after one operation; None where that is not a change of layout or type, or changes a value."""
    match user.op_type:
        case "Identity":
            return weight
        case "Transpose":
            return weight.transposed(tuple(user.attributes["perm"].as_ints()))
        case "Reshape":
            shape = user.outputs[0].shape
            return weight.reshaped(shape.numpy()) if shape is not None and shape.is_static() else None
        case "Cast":
            return weight.cast(ir.DataType(user.attributes["to"].as_int()))
    return None


def _read_weight(
    name: str, operation: dialect.Operation, arguments: dict[str, Any], target: Target, *, integers: bool = False
) -> OnnxWeight:
    """The weight that a dequantize operation of the program stands for.

    Args:
        name: of the codes.
        operation, arguments: of the program; constants among the arguments are tensors.
        target: says which types there are.
        integers: whether activations are quantized too, so that the runtime may multiply codes.
    """
    codes, qmin, qmax = arguments["codes"].numpy(force=True), arguments["qmin"], arguments["qmax"]
    axis: int | None = None
    if operation == dialect.DEQUANTIZE:
        scale: Array = np.array(arguments["scale"], np.float32)
        zero_point: Array = np.array(arguments["zero_point"], np.int64)
    else:
        scale = arguments["scale"].to(torch.float32).numpy(force=True)
        zero_point = arguments["zero_point"].numpy(force=True)
        axis = range(codes.ndim)[arguments.get("axis", 1)]  # Negative ones count from the end.
    lowest = min(codes.min(initial=qmin), zero_point.min(initial=qmin))
    highest = max(codes.max(initial=qmax), zero_point.max(initial=qmax))
    if lowest < qmin or highest > qmax:
        raise ExportError(
            f"'{name}' has codes or zero points from {lowest} to {highest}, outside of its grid, {qmin} to {qmax}: the "
            "model is damaged. Quantize it again."
        )
    stored = _type_for(target, codes, scale, zero_point, axis, (qmin, qmax), integers=integers)
    if stored is None:
        raise ExportError(
            f"'{name}' has codes from {qmin} to {qmax}, and the target '{target.name}' holds weights as "
            f"{', '.join(kind.name for kind in target.weight_types)}. Quantize this layer to fewer bits, or export for "
            "another target."
        )
    return OnnxWeight(name, codes, scale, zero_point, axis, ir.DataType[stored.name])


def _type_for(
    target: Target,
    codes: Array,
    scale: Array,
    zero_point: Array,
    axis: int | None,
    ends: tuple[int, int],
    *,
    integers: bool,
) -> IntegerType | None:
    """The type in which codes are stored; None where the target has none that holds them."""
    narrow = target.weight_type(*ends)
    if not integers or narrow is None:
        return narrow
    if _sum_overflows(codes, zero_point, axis):
        return target.weight_type(*ends, at_least=16)
    if scale.ndim > 1:
        # ONNX Runtime 1.31 takes the scales of groups for scales of columns, in kernels that multiply integers.
        return target.weight_type(*ends, at_least=16) if narrow.bits == 8 else narrow
    return target.weight_type(*ends, for_kernels=True)


def _sum_overflows(codes: Array, zero_point: Array, axis: int | None) -> bool:
    """Whether the sum of an output's products with 8-bit inputs could exceed the 32 bits that kernels add in."""
    if codes.size * 2**16 < LARGEST_SUM:
        return False
    channel = 0 if axis is None else axis
    shape = [-1 if dimension == channel and zero_point.ndim == 1 else 1 for dimension in range(codes.ndim)]
    centred = np.abs(codes.astype(np.int64) - (zero_point.reshape(shape) if zero_point.ndim < 2 else 0))
    others = tuple(dimension for dimension in range(codes.ndim) if dimension != channel)
    return bool(centred.sum(axis=others).max() * LARGEST_INPUT > LARGEST_SUM)


def _tensor(values: Array, onnx_type: ir.DataType, name: str) -> ir.Tensor[Array]:
    """An initialiser's content; 4-bit integers are packed two to a byte when it is written."""
    return ir.Tensor(np.array(values, onnx_type.numpy(), order="C"), dtype=onnx_type, name=name)


def _constants(program: ExportedProgram) -> dict[str, tuple[str, torch.Tensor]]:
    """For each placeholder of the program that holds a constant: its name in the model, and the tensor."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.constants, **program.state_dict}
    return {placeholder: (name, tensors[name]) for placeholder, name in names.items()}


def _identity(argument: Any) -> Any:
    """Equal for the same tensor, also by another name; other arguments as they are."""
    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.data_ptr(), argument.dtype, tuple(argument.shape), argument.stride()


def _free_name(graph: ir.Graph, name: str) -> str:
    """A name that no initialiser has."""
    return next(free for free in chain([name], (f"{name}_{i}" for i in count(1))) if free not in graph.initializers)
