"""A rehearsal: the operations of a network run on tensors without numbers, before they run on numbers.

A network that came from a file is rehearsed when it is loaded, and again when it is called with inputs of new shapes.
The rehearsal goes through the operations in order, and for each one

1. looks up its operands: tensors of the device `meta`, which have a shape and a dtype and no memory, or numbers;
2. checks that its arguments are of the kinds that its schema names (`artifacts/schema.py`), and that they are none of
   those that PyTorch takes on trust (`artifacts/kernels.py`);
3. runs it on `meta`, where PyTorch checks that shapes fit together;
4. adds up the bytes of all results that a later operation still reads. No sum, and no tensor that the operation makes
   for itself, may exceed the limit.

It takes some microseconds for each operation, and no memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from roundwise.artifacts import dialect
from roundwise.artifacts.codes import check_call
from roundwise.artifacts.confirmation import Forms, form
from roundwise.artifacts.kernels import MOST_DIMENSIONS, check_arguments, sequence_results
from roundwise.artifacts.schema import DTYPES, UnsafeError, bind_values, bytes_of, check_number
from roundwise.graph.graph import Graph, is_random
from roundwise.graph.vocabulary import RECURRENT, VOCABULARY
from roundwise.wording import human_bytes

META = torch.device("meta")

_OBJECT = 1 << 10
"""Bytes that a tensor takes besides its numbers: an operation can give thousands of tensors of one number each."""

_LARGEST_POWER = 64
"""The largest exponent in calculations on sizes: 2⁶⁴ is beyond every size, and 10¹⁰⁰⁰⁰⁰⁰⁰⁰⁰ would fill the memory."""


def rehearse(graph: Graph, inputs: Sequence[Any], limit: int, forms: Forms | None = None) -> int:
    """Run a graph without numbers.

    Args:
        graph: the network.
        inputs: for each placeholder a tensor on `meta`, or the fixed value of the input.
        limit: the most bytes that all results may take at any time.
        forms: is filled in with the forms of all results, if it is given.

    Returns:
        The most bytes that the results take at any time.

    Raises:
        UnsafeError: an operation cannot run on these inputs, or must not; names the operation.
    """
    values: dict[fx.Node, Any] = {}
    readers = {node: len(node.users) for node in graph.operations.nodes}
    given, live, most = iter(inputs), 0, 0
    nothing = any(isinstance(value, Tensor) and not value.numel() for value in inputs)
    with torch.no_grad(), _Watch(limit):
        for node in graph.operations.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = without_numbers(graph.constants[str(node.target)])
            else:
                values[node] = _result(node, values, limit, nothing)
                if forms is not None:
                    first = next(iter((*node.args, *node.kwargs.values())), None)
                    forms[node.name] = form(node, values[node], values[first] if isinstance(first, fx.Node) else first)
                live += _size(values[node])
                most = max(most, live)
                if live > limit:
                    raise UnsafeError(
                        f"'{node.name}' ({_name(node)}): the results of the operations up to here take "
                        f"{human_bytes(live)} together; at most {human_bytes(limit)} are allowed"
                    )
            for source in node.all_input_nodes:
                readers[source] -= 1
            for source in (node, *node.all_input_nodes):
                if not readers[source]:
                    live -= _size(values[source]) if source.op == "call_function" else 0
                    values[source] = None
    return most


def without_numbers(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, strides and dtype on the device `meta`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def _result(node: fx.Node, values: Mapping[fx.Node, Any], limit: int, nothing: bool) -> Any:
    """What an operation gives, without numbers; `nothing` says that the caller gave no samples."""
    args, kwargs = fx.map_arg((list(node.args), dict(node.kwargs)), values.__getitem__)
    try:
        operation = dialect.operation_of(node)
        if operation is not None:
            check_call(operation, operation.bind(args, kwargs))
            result = operation.function(*args, **kwargs)
        elif isinstance(node.target, OpOverload):
            result = _run(node, args, kwargs, limit, nothing)
        else:
            result = _calculate(node.target, args, kwargs)
        return _checked(result)
    except UnsafeError as error:
        raise UnsafeError(f"'{node.name}' ({_name(node)}) {error}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsafeError(f"'{node.name}' ({_name(node)}) cannot be computed: {lines[0][:300].rstrip('.')}") from error


def _run(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any], limit: int, nothing: bool) -> Any:
    """The result of an operation of PyTorch."""
    function = node.target
    assert isinstance(function, OpOverload)
    if function not in VOCABULARY or is_random(node):
        raise UnsafeError("is not an operation of networks that Roundwise runs from a file")
    arguments = bind_values(function, args, kwargs)
    check_arguments(function, arguments, limit)
    if not nothing:
        _check_not_empty(arguments)
    if arguments.get("pin_memory"):
        raise UnsafeError("asks for memory of the graphics card's driver")
    if function in RECURRENT:
        return sequence_results(arguments)
    args = [META if isinstance(value, torch.device) else value for value in args]
    kwargs = {name: META if isinstance(value, torch.device) else value for name, value in kwargs.items()}
    if "device" in arguments and not any(isinstance(value, Tensor) for value in arguments.values()):
        kwargs["device"] = META
    return function(*args, **kwargs)


def _check_not_empty(arguments: Mapping[str, Any]) -> None:
    """Raise if a tensor holds no numbers: some kernels that reduce over nothing give what lies in memory."""
    for name, value in arguments.items():
        for tensor in value if isinstance(value, list | tuple) else (value,):
            if isinstance(tensor, Tensor) and not tensor.numel():
                raise UnsafeError(f"is given '{name}' of shape {list(tensor.shape)}, which holds no numbers")


def _calculate(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The result of arithmetic on sizes, or one of the results of an operation that gives several."""
    if kwargs:
        raise UnsafeError("takes no arguments by name")
    if function is operator.getitem:
        values, place = args
        if not isinstance(values, list | tuple) or type(place) is not int or not 0 <= place < len(values):
            raise UnsafeError(f"takes result number {place!r} of something that has no such result")
        return values[place]
    for value in args:
        check_number(value)
    if function is operator.pow and abs(args[1]) > _LARGEST_POWER:
        raise UnsafeError(f"raises a number to the power {args[1]}; at most {_LARGEST_POWER} is allowed")
    result = function(*args)
    check_number(result)
    return result


def _checked(result: Any) -> Any:
    """A result, if it is one that an operation may have."""
    for leaf in result if isinstance(result, list | tuple) else (result,):
        if isinstance(leaf, Tensor):
            if leaf.device.type != META.type or leaf.dtype not in DTYPES or leaf.layout is not torch.strided:
                raise UnsafeError(f"gives a tensor in {leaf.dtype} and {leaf.layout}, which no file may have")
            if any(size < 0 for size in leaf.shape):  # expanding to no numbers lets such sizes pass
                raise UnsafeError(f"gives a tensor of the shape {list(leaf.shape)}")
        else:
            check_number(leaf)
    return result


def _size(value: Any) -> int:
    """Bytes of a result. Views count like copies, so that expanded tensors are not free, and objects count as well."""
    leaves = value if isinstance(value, list | tuple) else (value,)
    return sum(_OBJECT + bytes_of(leaf) for leaf in leaves if isinstance(leaf, Tensor))


def _name(node: fx.Node) -> str:
    operation = dialect.operation_of(node)
    if operation is not None:
        return operation.name
    return str(node.target) if isinstance(node.target, OpOverload) else getattr(node.target, "__name__", "a function")


@final
class _Watch(TorchDispatchMode):
    """Sees each operation that an operation consists of, and raises if its result is too large."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._limit = limit

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                if leaf.dim() > MOST_DIMENSIONS:
                    raise UnsafeError(
                        f"makes a tensor of {leaf.dim()} dimensions; at most {MOST_DIMENSIONS} are allowed"
                    )
                taken = bytes_of(leaf)
                if taken > self._limit:
                    raise UnsafeError(
                        f"makes a tensor of shape {list(leaf.shape)}, which takes {human_bytes(taken)}; at most "
                        f"{human_bytes(self._limit)} are allowed"
                    )
        return result
