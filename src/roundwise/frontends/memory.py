"""Make a graph independent of how values lie in memory.

A model is captured with inputs that are contiguous. The graph runs on inputs of any strides (images with channels last,
slices, permuted arrays), and the pass over the samples runs convolutions with channels last. Three kinds of operations
need care:

1. `view` fails where `reshape` makes a copy. PyTorch's decompositions write `view` for every `reshape` and `flatten`,
   and so does a model that knows its values to be contiguous. All of them become `reshape`: the same numbers.

2. Some operations read memory in its order (`MEMORY_READS`): `as_strided`, `view_as_complex`, `view` with another
   dtype. Before each of them, the value is brought to the strides that it had during capture.

3. `x.contiguous()` is not recorded during capture, since it does nothing there. If the model calls it before
   `as_strided`, the numbers that are read do not depend on the strides of the inputs, and otherwise they do. So a model
   with `as_strided` is captured once more with `RecordedContiguous`. If nothing fixes the order of a value that
   `as_strided` reads, `order_depends_on_inputs` says so, and the network takes contiguous inputs only.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from roundwise.graph.graph import Graph, bind, may_be_view, set_argument
from roundwise.graph.operators import ALWAYS_CONTIGUOUS, MEMORY_READS, STRIDED_READS, VIEWS
from roundwise.graph.shapes import infer

aten = torch.ops.aten

_FIXED_FORMATS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
"""Orders in memory that do not depend on that of the arguments."""


@final
class RecordedContiguous(TorchFunctionMode):
    """While it is active, `contiguous` makes a copy, which capture records."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.contiguous and result is args[0]:
            order = (kwargs or {}).get("memory_format", args[1] if len(args) > 1 else torch.contiguous_format)
            return aten.clone.default(result, memory_format=order)
        return result


def has_strided_reads(operations: fx.Graph) -> bool:
    """Whether a graph has `as_strided` or a form of it."""
    return any(node.target in STRIDED_READS for node in operations.nodes)


def order_depends_on_inputs(operations: fx.Graph) -> bool:
    """Whether an `as_strided` reads a value whose order in memory depends on that of the graph's inputs.

    Args:
        operations: captured with `RecordedContiguous`.
    """
    return any(node.target in STRIDED_READS and not has_fixed_order(node.args[0]) for node in operations.nodes)


def has_fixed_order(value: Any, inputs: Collection[str] | None = None) -> bool:
    """Whether the strides of a value are the same in every run.

    Args:
        value: of a graph.
        inputs: the names of the placeholders that are inputs, if tensors of the model are placeholders too; None if all
            placeholders are inputs.
    """
    while isinstance(value, fx.Node) and value.op == "call_function":
        if value.target in ALWAYS_CONTIGUOUS or value.kwargs.get("memory_format") in _FIXED_FORMATS:
            return True
        if not may_be_view(value):
            tensors = [one for one in value.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]
            return all(_is_constant(one, inputs) for one in tensors)
        value = value.args[0]
    return isinstance(value, fx.Node) and _is_constant(value, inputs)


def _is_constant(node: fx.Node, inputs: Collection[str] | None) -> bool:
    """Whether a value is a tensor of the model."""
    return node.op == "get_attr" or (node.op == "placeholder" and inputs is not None and node.name not in inputs)


def settle_memory_order(graph: Graph) -> None:
    """Let a graph compute the same for inputs of any strides: steps 1 and 2 of the module's docstring."""
    for node in list(graph.operations.nodes):
        if node.target in VIEWS:
            node.target = aten.reshape.default
    for node in list(graph.operations.nodes):
        if node.target in STRIDED_READS:
            _read_whole_memory(node)
            _bring_to_captured_strides(graph, node)
        elif node.target in MEMORY_READS:
            _insert(graph, node, aten.contiguous.default)


def _read_whole_memory(node: fx.Node) -> None:
    """Let `as_strided` of a part of a tensor read the tensor itself, from the place where the part begins."""
    value = node.args[0]
    assert isinstance(value, fx.Node)
    while _dense_order(value) is None and may_be_view(value):
        begin = value.meta["val"].storage_offset()
        if bind(node)["storage_offset"] is None:
            set_argument(node, "storage_offset", begin)
        value = value.args[0]
        assert isinstance(value, fx.Node)
        node.replace_input_with(node.all_input_nodes[0], value)


def _bring_to_captured_strides(graph: Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    order = _dense_order(source)
    if source.op == "get_attr" or order is None:
        return
    if order == sorted(order):
        _insert(graph, node, aten.contiguous.default)
        return
    back = [order.index(dim) for dim in range(len(order))]
    _insert(graph, node, aten.permute.default, order)
    _insert(graph, node, aten.contiguous.default)
    _insert(graph, node, aten.permute.default, back)


def _insert(graph: Graph, node: fx.Node, operation: Any, *arguments: Any) -> None:
    """Put an operation between a node and its first argument."""
    with graph.operations.inserting_before(node):
        inserted = graph.operations.call_function(operation, (node.args[0], *arguments))
    inserted.meta["val"] = infer(graph, inserted)
    node.args = (inserted, *node.args[1:])


def _dense_order(node: fx.Node) -> list[int] | None:
    """The dimensions from the largest stride to the smallest; None if the tensor is not all of its memory."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or _number(value.storage_offset()) != 0:
        return None
    sizes, strides = [_number(size) for size in value.shape], [_number(stride) for stride in value.stride()]
    order = sorted(range(len(sizes)), key=lambda dim: (-strides[dim], dim) if sizes[dim] > 1 else (0, dim))
    expected = 1
    for dim in reversed(order):
        if sizes[dim] > 1 and strides[dim] != expected:
            return None
        expected *= sizes[dim]
    wide = [dim for dim in order if sizes[dim] > 1]
    return list(range(len(sizes))) if wide == sorted(wide) else order


def _number(size: Any) -> int:
    """A size or stride in the captured batch."""
    return int(size.node.hint if isinstance(size, torch.SymInt) else size)
