"""The operations of a quantized network that are Roundwise's own: their names, their arguments, what they compute.

    name in graphs and files            what it does
    roundwise.quantize                  real numbers to codes, one scale for the tensor
    roundwise.dequantize                codes to real numbers, one scale for the tensor
    roundwise.dequantize_per_channel    codes to real numbers, one scale for each index along an axis
    roundwise.dequantize_per_group      codes to real numbers, one scale for each group of neighbours in a row

Every other operation of a graph is PyTorch's (ATEN). These four exist in three forms, with the same arguments in the
same order:

1. *The name* stands in a `.rw` file. It does not depend on what PyTorch calls anything.
2. *The function* is the target of a node in a graph, and what the module runs. It is arithmetic on tensors
   (`numerics/affine.py`), so `torch.compile` and `torch.export` see plain ATEN operations.
3. *The operator* (`torch.ops.roundwise.…`) stands in programs made for an exporter, where each operation must stay one
   node so that it can be translated. `with_operators` brings a graph into this form.

An exporter binds the operations to what others call them, in one table: `exporters/pt2e.py` for PyTorch's quantization
tools, `exporters/onnx/operators.py` for ONNX. To find quantizers in a graph, ask `operation_of`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final, get_type_hints

import torch
from torch import Tensor, fx

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
    """One operation of the dialect: its name, as in `roundwise.quantize`, and the function that computes it."""

    name: str
    function: Callable[..., Tensor]

    @property
    def parameters(self) -> Mapping[str, type]:
        """The type of each argument by its name, in order: Tensor, float, int or dtype."""
        return {name: kind for name, kind in get_type_hints(self.function).items() if name != "return"}

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments of a node that calls this operation, by their names."""
        return dict(zip(self.parameters, node.args, strict=True))

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Make sure that a node can call the operation with these arguments; a node is a tensor.

        Raises:
            TypeError: names the argument that is of another type.
        """
        parameters = self.parameters
        if kwargs or len(args) != len(parameters):
            raise TypeError(
                f"{self.name} takes {len(parameters)} arguments by position, and the graph gives {len(args)} by "
                f"position and {len(kwargs)} by name."
            )
        for (name, kind), value in zip(parameters.items(), args, strict=True):
            fits = isinstance(value, fx.Node if kind is Tensor else kind) and not isinstance(value, bool)
            if not fits:
                raise TypeError(
                    f"the argument '{name}' of {self.name} must be of type {kind.__name__}, and is {value!r}."
                )


QUANTIZE = Operation("roundwise.quantize", quantize)
DEQUANTIZE = Operation("roundwise.dequantize", dequantize)
DEQUANTIZE_PER_CHANNEL = Operation("roundwise.dequantize_per_channel", dequantize_per_channel)
DEQUANTIZE_PER_GROUP = Operation("roundwise.dequantize_per_group", dequantize_per_group)

OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (QUANTIZE, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, DEQUANTIZE_PER_GROUP)
}
"""All operations of the dialect by their names. A new one needs an entry here and in each exporter's table."""

DEQUANTIZERS = (DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, DEQUANTIZE_PER_GROUP)
"""The operations that read codes."""


def operation_of(node: fx.Node) -> Operation | None:
    """The operation of the dialect that a node of a graph calls, or None."""
    return next((operation for operation in OPERATIONS.values() if node.target is operation.function), None)


# ------------------------------------------------------------------------------------------------- the operators


@functools.cache
def _library() -> torch.library.Library:
    """Register the operators in PyTorch; kept by the cache, since PyTorch forgets operators whose library is freed."""
    library = torch.library.Library("roundwise", "DEF")
    for operation in OPERATIONS.values():
        name = operation.name.partition(".")[2]
        library.define(name + torch.library.infer_schema(operation.function, mutates_args=()))
        library.impl(name, operation.function, "CompositeExplicitAutograd")
    return library


def operator_for(operation: Operation) -> torch._ops.OpOverload:
    """The operator of PyTorch that stands for an operation in programs.

    The first call registers all of them in PyTorch, for the rest of the process.
    """
    namespace = getattr(torch.ops, _library().ns)
    operator: torch._ops.OpOverload = getattr(namespace, operation.name.partition(".")[2]).default
    return operator


def with_operators(graph: Graph) -> Graph:
    """A copy of the graph in which the dialect's operations are the registered operators."""
    return _retargeted(graph, ((one.function, operator_for(one)) for one in OPERATIONS.values()))


def with_functions(graph: Graph) -> Graph:
    """A copy of the graph in which the dialect's operations are functions again: the inverse of `with_operators`."""
    return _retargeted(graph, ((operator_for(one), one.function) for one in OPERATIONS.values()))


def _retargeted(graph: Graph, pairs: Iterable[tuple[Callable[..., Any], Callable[..., Any]]]) -> Graph:
    targets, copy = dict(pairs), graph.copy()
    for node in copy.operations.nodes:
        if node.op == "call_function" and node.target in targets:
            node.target = targets[node.target]
    return copy
