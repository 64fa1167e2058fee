"""A confirmation: the operations of a network give what the rehearsal said that they give.

PyTorch computes the shape and dtype of a result in two places: in the kernel, and in the code for tensors without
numbers, on which a rehearsal runs. Both can differ: the mean that batch-norm gives for numbers in bfloat16 is float32
in one and bfloat16 in the other. What follows would then be checked for tensors that it does not get.

So the first call with inputs of new shapes runs operation by operation, and compares each result with the rehearsal's
before the next operation reads it. Later calls with the same shapes need no comparison, because in the vocabulary the
shape of a result depends on nothing but shapes.

A view into memory (`as_strided`) reads wherever its tensor's memory reaches, so that memory is compared as well.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.artifacts.schema import UnsafeError

VIEW = torch.ops.aten.as_strided.default
"""The operation that reads memory of its tensor outside of the tensor."""

Forms = dict[str, Any]
"""By the names of operations: what there is to say about their results without numbers."""


def form(node: fx.Node, result: Any, first: Any) -> Any:
    """Shape and dtype of a result, the result itself if it is a number, and the memory that a view is made of.

    Args:
        node: the operation.
        result: what it gives.
        first: its first argument.
    """
    if node.target is VIEW:
        return first.untyped_storage().nbytes(), first.storage_offset(), _of_value(result)
    if isinstance(result, list | tuple):
        # Those that are taken out are compared then. Others may differ, for nobody reads them.
        if all(user.target is operator.getitem for user in node.users):
            return len(result)
        return hash(tuple(map(_of_value, result)))
    return _of_value(result)


def _of_value(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (type(value), value)


def has_views(graph: fx.Graph) -> bool:
    """Whether a graph has views into memory."""
    return bool(graph.find_nodes(op="call_function", target=VIEW))


def in_own_memory(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if its memory holds more than its numbers in their order."""
    alone = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


@final
class Confirmation(fx.Interpreter):
    """Runs a graph operation by operation, and compares all results with those of a rehearsal.

    Args:
        module: runs the graph.
        forms: of the results in the rehearsal.
    """

    def __init__(self, module: fx.GraphModule, forms: Mapping[str, Any]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._forms = forms

    def call(self, leaves: Sequence[Any]) -> Any:
        """The result of a call of the module.

        Args:
            leaves: the inputs, one for each placeholder.

        Raises:
            UnsafeError: an operation gives something else than in the rehearsal; names it.
        """
        flat = self.run(*leaves, enable_io_processing=False)
        return self.graph.process_outputs(flat)

    def run_node(self, n: fx.Node) -> Any:
        """The result of one operation."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = self.call_function(n.target, args, kwargs)
        first = next(iter((*args, *kwargs.values())), None)
        found, expected = form(n, result, first), self._forms[n.name]
        if found != expected:
            autocast = " Autocast is on: switch it off for this call." if torch.is_autocast_enabled("cpu") else ""
            raise UnsafeError(
                f"'{n.name}' ({n.target}) gives {_in_words(found)}, where the rehearsal gave {_in_words(expected)}. "
                f"The operations behind it were checked for the latter.{autocast}"
            )
        return result


def _in_words(one: Any) -> str:
    """The form of a result for a message."""
    match one:
        case (tuple() as shape, torch.dtype() as dtype):
            return f"{dtype} {list(shape)}"
        case (type(), number):
            return f"{number}"
        case (int() as memory, int() as place, tuple() as view):
            return f"{_in_words(view)}, made of place {place} in {memory} bytes"
    return "several results"
