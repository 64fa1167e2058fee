"""Checks of the numbers that Roundwise's own operations are given: scales, zero points, ranges of codes, and codes.

`dialect.py` says what the operations compute. A graph that Roundwise made passes these checks; one that comes from a
file must.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from roundwise.artifacts import dialect
from roundwise.artifacts.schema import UnsafeError
from roundwise.graph.graph import Graph

CODE_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)
"""The dtypes of codes. 32 bits hold unsigned codes of 16."""

_LARGEST_SCALE = torch.finfo(torch.float32).max

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_call(operation: dialect.Operation, arguments: Mapping[str, Any]) -> None:
    """Raise unless shapes, dtypes and limits of codes fit together.

    Args:
        operation: the operation.
        arguments: by their names; tensors may be without numbers.

    Raises:
        UnsafeError: says which argument is wrong, and why.
    """
    qmin, qmax, dtype = arguments["qmin"], arguments["qmax"], arguments["dtype"]
    if not -(1 << 15) <= qmin <= qmax < 1 << 16 or qmax - qmin >= 1 << 16:
        raise UnsafeError(f"has codes from {qmin} to {qmax}, which is no range of at most 16 bits")
    if operation is dialect.QUANTIZE:
        if arguments["values"].dtype not in _FLOATS or dtype not in CODE_DTYPES:
            raise UnsafeError(f"makes codes in {dtype} of numbers in {arguments['values'].dtype}")
        if not torch.iinfo(dtype).min <= qmin <= qmax <= torch.iinfo(dtype).max:
            raise UnsafeError(f"has codes from {qmin} to {qmax}, which {dtype} cannot hold")
        return
    codes = arguments["codes"]
    if codes.dtype not in CODE_DTYPES or dtype not in _FLOATS:
        raise UnsafeError(f"makes numbers in {dtype} of codes in {codes.dtype}")
    if operation is dialect.DEQUANTIZE_PER_CHANNEL:
        axis = arguments["axis"]
        if not 0 <= axis < codes.dim():
            raise UnsafeError(f"has scales along axis {axis} of codes of shape {list(codes.shape)}")
        _check_grid(arguments, [codes.shape[axis]])
    elif operation is dialect.DEQUANTIZE_PER_GROUP:
        size = arguments["size"]
        if codes.dim() != 2 or not 1 <= size <= codes.shape[1] or codes.shape[1] % size:
            raise UnsafeError(f"divides codes of shape {list(codes.shape)} into groups of {size}")
        _check_grid(arguments, [codes.shape[0], codes.shape[1] // size])


def _check_grid(arguments: Mapping[str, Any], shape: list[int]) -> None:
    for name, dtype in (("scale", torch.float32), ("zero_point", torch.int64)):
        value = arguments[name]
        if list(value.shape) != shape or value.dtype != dtype:
            raise UnsafeError(f"is given '{name}' in {value.dtype} {list(value.shape)}; its codes need {dtype} {shape}")


def check_stored(graph: Graph) -> None:
    """Raise unless all scales are positive and finite, and all codes and zero points lie between qmin and qmax.

    Args:
        graph: has been rehearsed, so that its operations are known to have arguments of the right kinds.

    Raises:
        UnsafeError: names the operation and the number.
    """
    for node in graph.operations.nodes:
        operation = dialect.operation_of(node)
        if operation is not None:
            try:
                _check_numbers(operation, graph, node)
            except UnsafeError as error:
                raise UnsafeError(f"'{node.name}' ({operation.name}) {error}") from error


def _check_numbers(operation: dialect.Operation, graph: Graph, node: fx.Node) -> None:
    arguments = operation.arguments(node)
    values: dict[str, Any] = {}
    for name, kind in operation.parameters.items():
        source = arguments[name]
        values[name] = graph.constant(source) if isinstance(source, fx.Node) else source
        if values[name] is None and (name in ("scale", "zero_point") or kind is not Tensor):
            raise UnsafeError(f"has '{name}' computed by '{source}'; it must be stored")
    scale, (low, high) = values["scale"], _ends(values["zero_point"])
    sound = scale.isfinite() & (scale > 0) if isinstance(scale, Tensor) else torch.tensor(0 < scale <= _LARGEST_SCALE)
    if not sound.all():
        wrong = scale[~sound][0].item() if isinstance(scale, Tensor) else scale
        raise UnsafeError(f"has the scale {wrong}; scales must be positive and finite")
    qmin, qmax = values["qmin"], values["qmax"]
    if low < qmin or high > qmax:
        raise UnsafeError(f"has zero points from {low} to {high}, where the codes are {qmin} to {qmax}")
    low, high = _ends(values.get("codes"), qmin)
    if low < qmin or high > qmax:
        raise UnsafeError(f"reads codes from {low} to {high}, where {qmin} to {qmax} are allowed")


def _ends(value: Any, otherwise: int = 0) -> tuple[int, int]:
    """The smallest and the largest of some whole numbers; where there are none, another number."""
    if isinstance(value, Tensor):
        return (int(value.min()), int(value.max())) if value.numel() else (otherwise, otherwise)
    return (otherwise, otherwise) if value is None else (value, value)
