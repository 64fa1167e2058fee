"""Roundwise's own operations in quantized networks: their names, their arguments, and their arithmetic.

    name in graphs and files            what it does
    roundwise.quantize                  real numbers to codes, one scale for the tensor
    roundwise.dequantize                codes to real numbers, one scale for the tensor
    roundwise.dequantize_per_channel    codes to real numbers, one scale for each index along an axis
    roundwise.dequantize_per_group      codes to real numbers, one scale for each group of neighbours in a row

All other operations of a graph are PyTorch's (ATEN). These four exist in three forms, with the same arguments in the
same order:

1. *The name* is written in a `.rw` file. It does not depend on names in PyTorch.
2. *The function* is the target of a node in a graph, and runs when the module runs. It is arithmetic on tensors
   (`numerics/affine.py`), so `torch.compile` and `torch.export` see plain ATEN operations.
3. *The operator* (`torch.ops.roundwise.…`) is used in programs for an exporter, where each operation must stay one node
   so that it can be translated. `with_operators` changes a graph to this form.

Each exporter has one table that maps the operations to those of another format: `exporters/pt2e.py` for PyTorch's
quantization tools, `exporters/onnx/operators.py` for ONNX. `operation_of` finds these operations in a graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final, get_type_hints

import torch
from torch import Tensor, fx

from roundwise.artifacts.schema import UnsafeError
from roundwise.graph.graph import Graph
from roundwise.numerics import affine

# --------------------------------------------------------------------------------------------------- the functions


def quantize(values: Tensor, scale: float, zero_point: int, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    """Codes `qmin` to `qmax` of a tensor of real numbers, in the integer `dtype`."""
    return affine.quantize(values, scale, zero_point, qmin, qmax, dtype)


def dequantize(codes: Tensor, scale: float, zero_point: int, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    """The real numbers of codes `qmin` to `qmax`, in the floating-point `dtype`."""
    return affine.dequantize(codes, scale, zero_point, dtype)


def dequantize_per_channel(
    codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """The real numbers of codes `qmin` to `qmax`, with a scale and a zero point for each index along `axis`."""
    return affine.dequantize_per_channel(codes, scale, zero_point, axis, dtype)


def dequantize_per_group(
    codes: Tensor, scale: Tensor, zero_point: Tensor, size: int, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """The real numbers of a matrix of codes, with a scale and a zero point for each `size` neighbours in a row.

    Shapes: codes `[rows, cols]`, scale and zero point `[rows, cols / size]`.
    """
    return affine.dequantize_per_group(codes, scale, zero_point, size, dtype)


# ----------------------------------------------------------------------------------------------------- the table


@final
@dataclass(frozen=True)
class Operation:
    """One operation of Roundwise: its name, such as `roundwise.quantize`, and the function that computes it."""

    name: str
    function: Callable[..., Tensor]

    @property
    def parameters(self) -> Mapping[str, type]:
        """The type of each argument by its name, in order: Tensor, float, int or dtype."""
        return {name: kind for name, kind in get_type_hints(self.function).items() if name != "return"}

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments of a node that calls this operation, by their names."""
        return dict(zip(self.parameters, node.args, strict=True))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The values that a call gives, by the names of the arguments.

        Raises:
            UnsafeError: there are too many or too few, or one has the wrong type.
        """
        parameters = self.parameters
        if kwargs or len(args) != len(parameters):
            raise UnsafeError(
                f"takes {len(parameters)} arguments by position, but the graph gives {len(args)} by position and "
                f"{len(kwargs)} by name"
            )
        for (name, kind), value in zip(parameters.items(), args, strict=True):
            fits = isinstance(value, Tensor if kind is Tensor else kind) and not isinstance(value, bool)
            if not fits:
                raise UnsafeError(f"is given {value!r} as '{name}', which must be of type {kind.__name__}")
        return dict(zip(parameters, args, strict=True))


QUANTIZE = Operation("roundwise.quantize", quantize)
DEQUANTIZE = Operation("roundwise.dequantize", dequantize)
DEQUANTIZE_PER_CHANNEL = Operation("roundwise.dequantize_per_channel", dequantize_per_channel)
DEQUANTIZE_PER_GROUP = Operation("roundwise.dequantize_per_group", dequantize_per_group)

OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, DEQUANTIZE_PER_GROUP)
}
"""All operations of Roundwise by their names. A new one needs an entry here and in each exporter's table."""

DEQUANTIZERS = (DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, DEQUANTIZE_PER_GROUP)
"""The operations that read codes."""


def operation_of(node: fx.Node) -> Operation | None:
    """The operation of Roundwise that a node of a graph calls, or None."""
    return next((operation for operation in OPERATIONS.values() if node.target is operation.function), None)


# ------------------------------------------------------------------------------------------------- the operators


@functools.cache
def _library() -> torch.library.Library:
    """Register the operators in PyTorch. The cache keeps the library, because freeing it would remove the operators."""
    library = torch.library.Library("roundwise", "DEF")
    for operation in OPERATIONS.values():
        name = operation.name.partition(".")[2]
        library.define(name + torch.library.infer_schema(operation.function, mutates_args=()))
        library.impl(name, operation.function, "CompositeExplicitAutograd")
    return library


def operator_for(operation: Operation) -> torch._ops.OpOverload:
    """The PyTorch operator for an operation.

    The first call registers all operators in PyTorch, for the rest of the process.
    """
    namespace = getattr(torch.ops, _library().ns)
    operator: torch._ops.OpOverload = getattr(namespace, operation.name.partition(".")[2]).default
    return operator


def with_operators(graph: Graph) -> Graph:
    """A copy of the graph in which Roundwise's operations are the registered operators."""
    return _retargeted(graph, ((one.function, operator_for(one)) for one in OPERATIONS.values()))


def with_functions(graph: Graph) -> Graph:
    """A copy of the graph in which Roundwise's operations are functions again: the inverse of `with_operators`."""
    return _retargeted(graph, ((operator_for(one), one.function) for one in OPERATIONS.values()))


def _retargeted(graph: Graph, pairs: Iterable[tuple[Callable[..., Any], Callable[..., Any]]]) -> Graph:
    targets, copy = dict(pairs), graph.copy()
    for node in copy.operations.nodes:
        if node.op == "call_function" and node.target in targets:
            node.target = targets[node.target]
    return copy
