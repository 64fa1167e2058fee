"""What ONNX calls the operations of the dialect: QuantizeLinear and DequantizeLinear.

`torch.onnx` translates a program operation by operation, and looks up those of the dialect in `TRANSLATIONS`.

What it makes of a quantized *weight* is not final: it holds the graph together until `weights.py` replaces it.
What it makes of a quantizer *between operations* stays:

- QuantizeLinear clips at the ends of its integer type. A grid with fewer codes than the type is clipped before.
- Codes of activations are counted from 0, in 8 or 16 bits: see the target `ort-cpu`. Codes and zero point are both
  moved by the same number, and stand for the same real numbers.
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
from roundwise.targets.ort_cpu import ORT_CPU


def _quantize(
    values: Any,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: int,
) -> Any:
    """The codes of a tensor between operations."""
    values = opset21.Cast(values, to=ir.DataType.FLOAT)
    onnx_type = _activation_type(qmin, qmax)
    if qmax - qmin != onnx_type.largest - onnx_type.smallest:
        low, high = (_constant((end - zero_point) * scale, ir.DataType.FLOAT) for end in (qmin, qmax))
        values = opset21.Clip(values, low, high)
    return opset21.QuantizeLinear(values, *_scale_and_zero_point(scale, zero_point, qmin, qmax))


def _dequantize(codes: Any, scale: float, zero_point: int, qmin: int, qmax: int, dtype: int) -> Any:
    """The real numbers of a tensor between operations, or for the time being of a weight with one scale."""
    return _cast(opset21.DequantizeLinear(codes, *_scale_and_zero_point(scale, zero_point, qmin, qmax)), dtype)


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


TRANSLATIONS: dict[str, Callable[..., Any]] = {
    dialect.QUANTIZE.name: _quantize,
    dialect.DEQUANTIZE.name: _dequantize,
    dialect.DEQUANTIZE_PER_CHANNEL.name: _dequantize_per_channel,
    dialect.DEQUANTIZE_PER_GROUP.name: _dequantize_per_group,
}
"""Every operation of the dialect in ONNX, by its name."""


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translations as `torch.onnx.export` takes them: by the operators that stand in a program."""
    table: dict[Callable[..., Any], Callable[..., Any]] = {
        dialect.operator_for(operation): TRANSLATIONS[name] for name, operation in dialect.OPERATIONS.items()
    }
    return {**table, operator.floordiv: floor_divide}


def _cast(values: Any, dtype: int) -> Any:
    """The result of DequantizeLinear, float32, in the dtype that the operation has to give."""
    return values if dtype == ir.DataType.FLOAT else opset21.Cast(values, to=dtype)


def _activation_type(qmin: int, qmax: int) -> Any:
    found = ORT_CPU.activation_type(qmin, qmax)
    if found is None:
        raise ExportError(
            f"An activation has codes from {qmin} to {qmax}, and ONNX Runtime takes at most 16 bits. Quantize "
            "activations to 16 bits or fewer."
        )
    return found


def _scale_and_zero_point(scale: float, zero_point: int, qmin: int, qmax: int) -> tuple[Any, Any]:
    onnx_type = ir.DataType[_activation_type(qmin, qmax).name]
    return _constant(scale, ir.DataType.FLOAT), _constant(zero_point - qmin, onnx_type)


def _constant(value: float, onnx_type: ir.DataType) -> Any:
    return opset21.Constant(value=ir.serde.serialize_tensor(ir.Tensor(np.array(value, onnx_type.numpy()))))
