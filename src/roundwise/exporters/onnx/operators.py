"""What ONNX calls the operations of the dialect: QuantizeLinear and DequantizeLinear.

`torch.onnx` translates a program operation by operation, and looks up those of the dialect in `translation_table`.

What it makes of a quantized *weight* is not final: it holds the graph together until `weights.py` replaces it.
What it makes of a quantizer *between operations* stays:

- QuantizeLinear clips at the ends of its integer type. A grid with fewer codes than the type is clipped before.
- Codes of activations are in a type of the target. Some targets move codes and zero point by the same number, so that
  they stand for the same real numbers: in `ort-cpu` they are counted from 0.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.onnx_opset import opset21

from roundwise.artifacts import dialect
from roundwise.errors import ExportError
from roundwise.exporters.onnx.divisions import floor_divide
from roundwise.targets import IntegerType, Target


def translation_table(target: Target) -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translations as `torch.onnx.export` takes them: by the operators that stand in a program.

    They are functions within this one, because `torch.onnx` takes functions only, and they depend on the target.

    Args:
        target: says in which types codes of activations are.
    """

    def grid(scale: float, zero_point: int, qmin: int, qmax: int) -> tuple[Any, Any]:
        """Scale and zero point, which has the type of the codes and is moved as they are."""
        stored, moved = _activation_type(target, qmin, qmax)
        return _constant(scale, ir.DataType.FLOAT), _constant(zero_point + moved, ir.DataType[stored.name])

    def quantize(values: Any, scale: float, zero_point: int, qmin: int, qmax: int, dtype: int) -> Any:
        """The codes of a tensor between operations."""
        values = opset21.Cast(values, to=ir.DataType.FLOAT)
        stored, _ = _activation_type(target, qmin, qmax)
        if qmax - qmin != stored.largest - stored.smallest:
            low, high = (_constant((end - zero_point) * scale, ir.DataType.FLOAT) for end in (qmin, qmax))
            values = opset21.Clip(values, low, high)
        return opset21.QuantizeLinear(values, *grid(scale, zero_point, qmin, qmax))

    def dequantize(codes: Any, scale: float, zero_point: int, qmin: int, qmax: int, dtype: int) -> Any:
        """The real numbers of a tensor between operations, or for the time being of a weight with one scale."""
        return _cast(opset21.DequantizeLinear(codes, *grid(scale, zero_point, qmin, qmax)), dtype)

    table: dict[dialect.Operation, Callable[..., Any]] = {
        dialect.QUANTIZE: quantize,
        dialect.DEQUANTIZE: dequantize,
        dialect.DEQUANTIZE_PER_CHANNEL: _dequantize_per_channel,
        dialect.DEQUANTIZE_PER_GROUP: _dequantize_per_group,
    }
    translations: dict[Callable[..., Any], Callable[..., Any]] = {operator.floordiv: floor_divide}
    translations.update({dialect.operator_for(operation): function for operation, function in table.items()})
    return translations


def _dequantize_per_channel(
    codes: Any,
    scale: Any,
    zero_point: Any,  # It is added when the weight is stored, in the type of the codes.
    axis: int,
    qmin: int,
    qmax: int,
    dtype: int,
) -> Any:
    """The real numbers of a weight with a scale per channel, for the time being."""
    return _cast(opset21.DequantizeLinear(codes, scale, axis=axis), dtype)


def _dequantize_per_group(
    codes: Any,
    scale: Any,
    zero_point: Any,
    size: int,
    qmin: int,
    qmax: int,
    dtype: int,
) -> Any:
    """The real numbers of a weight with a scale per group, for the time being."""
    return _cast(opset21.DequantizeLinear(codes, scale, axis=1, block_size=size), dtype)


def _activation_type(target: Target, qmin: int, qmax: int) -> tuple[IntegerType, int]:
    """In which type codes are stored, and by how much they are moved."""
    found = target.activation_type(qmin, qmax)
    if found is None:
        raise ExportError(
            f"An activation has codes from {qmin} to {qmax}, and the target '{target.name}' holds them as "
            f"{', '.join(kind.name for kind in target.activation_types)}. Quantize the network for this target, or "
            "export it for another."
        )
    return found


def _cast(values: Any, dtype: int) -> Any:
    """The result of DequantizeLinear, float32, in the dtype that the operation has to give."""
    return values if dtype == ir.DataType.FLOAT else opset21.Cast(values, to=dtype)


def _constant(value: float, onnx_type: ir.DataType) -> Any:
    return opset21.Constant(value=ir.serde.serialize_tensor(ir.Tensor(np.array(value, onnx_type.numpy()))))
