"""Writes in place whose effect depends on how values lie in memory.

`flatten`, `reshape` and `contiguous` return a view of their argument where its order in memory allows one, and a copy
elsewhere. The numbers are the same. But if the model then writes in place to one of the two and reads the other, it
computes one thing where they share memory and another where they do not:

    y = h.flatten(1)        a view of h where h is contiguous, a copy where its channels come last
    y.relu_()               changes h, or leaves it as it is
    return y, h.mean()      depends on which

A graph can hold one of the two functions only: the one for contiguous inputs. Such writes are found in the program as
PyTorch recorded it, before its in-place operations become pure:

1. Each operation is connected with the operands whose memory its result shares. The connection is uncertain if the
   operation is one of `_VIEW_OR_COPY` and joins dimensions.
2. A write reaches all tensors that are connected with the tensor that it changes. Those that it reaches only through an
   uncertain connection may be changed or not.
3. If such a tensor is read after the write, the write is uncertain.

`x.contiguous()` returns `x` itself where `x` is contiguous, and PyTorch records nothing. `KeptOrder` sees such calls,
and on request makes two tensors of the two.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from roundwise.frontends.explain import Place, place_of
from roundwise.frontends.memory import has_fixed_order
from roundwise.graph.graph import bind

aten = torch.ops.aten

_RESHAPES = {
    aten.flatten.using_ints,
    aten.ravel.default,
    aten.reshape.default,
    aten.reshape_as.default,
}
"""Operations that give a view if the dimensions that they join lie one after the other in memory."""

_REORDERS = {
    aten.contiguous.default,
    aten.to.device,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.other,
}
"""Operations that give their argument itself if it lies in memory in the order that is asked for."""

_VIEW_OR_COPY = _RESHAPES | _REORDERS

_NO_READS = {
    aten.sym_size.int,
    aten.sym_stride.int,
    aten.sym_numel.default,
    aten.sym_storage_offset.default,
    aten._assert_tensor_metadata.default,
}
"""Operations that read no values of their argument."""


@final
@dataclass(frozen=True)
class UncertainWrite:
    """A write in place whose effect depends on how values lie in memory.

    Attributes:
        write: the operation that writes, such as `relu_`.
        at: where the user's code calls it.
        through: the operation that gives a view or a copy, such as `flatten`.
        made_at: where the user's code calls that.
        by_layout: whether the layout of the inputs decides; otherwise only their sizes do.
    """

    write: str
    at: Place | None
    through: str
    made_at: Place | None
    by_layout: bool

    def __str__(self) -> str:
        at = "" if self.at is None else f" at {self.at}"
        made = "" if self.made_at is None else f" at {self.made_at}"
        return (
            f"the model writes in place (`{self.write}`{at}) to what `{self.through}` returned or was given{made}, "
            f"and reads the other of the two afterwards. `{self.through}` returns a view in one memory layout, and a "
            "copy in another"
        )


CURE = "Let that operation not write in place (`y = y * 2`, `nn.ReLU(inplace=False)`), or copy before it: `y.clone()`."
"""What a user can do about an uncertain write."""


@final
class KeptOrder(TorchFunctionMode):
    """Sees calls that ask for an order in memory and get their argument itself.

    PyTorch counts the writes to a tensor and its views.
    """

    def __init__(self, *, distinct: bool = False) -> None:
        """Make the mode.

        Args:
            distinct: whether such a call returns a view of the argument, so that a program shows both.
        """
        super().__init__()
        self._distinct, self._kept = distinct, list[tuple[Tensor, int]]()

    @property
    def was_written(self) -> bool:
        """Whether something was written to such an argument after the call."""
        return any(tensor._version != version for tensor, version in self._kept)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not args or result is not args[0] or torch.compiler.is_dynamo_compiling():
            return result
        if func is Tensor.contiguous or (func is Tensor.to and "memory_format" in kwargs):
            self._kept.append((result, result._version))
            return aten.alias.default(result) if self._distinct else result
        return result


def uncertain_writes(program: ExportedProgram, *, aliases: bool = False) -> tuple[UncertainWrite, ...]:
    """The writes in place of a program whose effect depends on how values lie in memory.

    Args:
        program: as PyTorch recorded it, with its in-place operations.
        aliases: whether `alias` stands for a call that returned its argument itself (`KeptOrder`).
    """
    nodes = list(program.graph.nodes)
    written = [(node, target) for node in nodes for target in _written(node)]
    if not written:
        return ()
    user_inputs = set(program.graph_signature.user_inputs)
    connections = _Connections(nodes, {aten.alias.default} if aliases else set())
    found = []
    for write, target in written:
        cause = connections.cause_of_doubt(write, target)
        if cause is not None:
            source = cause.args[0]
            fixed = isinstance(source, fx.Node) and has_fixed_order(source, user_inputs)
            found.append(
                UncertainWrite(_name(write), place_of(write), _name(cause), place_of(cause), by_layout=not fixed)
            )
    return tuple(found)


def _name(node: fx.Node) -> str:
    if node.target is aten.alias.default:
        return "contiguous"
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The values to which an operation writes."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    arguments = bind(node)
    for argument in node.target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = arguments[argument.name]
            yield from (one for one in (value if isinstance(value, list | tuple) else [value]) if _is_node(one))


def _is_node(value: object) -> bool:
    return isinstance(value, fx.Node)


@final
class _Connections:
    """Which values of a program share memory, for certain or perhaps."""

    def __init__(self, nodes: list[fx.Node], further: Collection[Any]) -> None:
        self._position = {node: number for number, node in enumerate(nodes)}
        self._neighbours: dict[fx.Node, list[tuple[fx.Node, fx.Node | None]]] = {node: [] for node in nodes}
        storages = {node: _storages(node) for node in nodes}
        for node in nodes:
            if node.op != "call_function":
                continue
            doubtful = _may_be_either(node, further)
            for source in node.all_input_nodes:
                if (doubtful and source is node.args[0]) or storages[node] & storages[source]:
                    cause = node if doubtful else None
                    self._neighbours[node].append((source, cause))
                    self._neighbours[source].append((node, cause))

    def cause_of_doubt(self, write: fx.Node, target: fx.Node) -> fx.Node | None:
        """The operation because of which a value that is read later may be changed by a write or not; None if none."""
        when = self._position[write]
        certain = self._reached(target, when, through_doubt=False)
        for node, cause in self._reached(target, when, through_doubt=True).items():
            if cause is not None and node not in certain and self._is_read_after(node, when):
                return cause
        return None

    def _reached(self, target: fx.Node, when: int, *, through_doubt: bool) -> dict[fx.Node, fx.Node | None]:
        """The values that are connected with one, each with the first doubtful operation on the way."""
        reached: dict[fx.Node, fx.Node | None] = {target: None}
        rest = [target]
        while rest:
            node = rest.pop()
            for neighbour, cause in self._neighbours[node]:
                # A copy or view that is made after the write has its result in either case.
                doubt = cause if cause is not None and self._position[cause] < when else None
                if neighbour not in reached and (through_doubt or doubt is None):
                    reached[neighbour] = reached[node] or doubt
                    rest.append(neighbour)
        return reached

    def _is_read_after(self, node: fx.Node, when: int) -> bool:
        views = {neighbour for neighbour, _ in self._neighbours[node]}
        return any(
            self._position[user] > when and user not in views and user.target not in _NO_READS for user in node.users
        )


def _storages(node: fx.Node) -> set[int]:
    """The memory of a value, or of each value of several."""
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return {one.untyped_storage()._cdata for one in values if isinstance(one, Tensor)}


def _may_be_either(node: fx.Node, further: Collection[Any]) -> bool:
    """Whether an operation gives a view or a copy, depending on how its argument lies in memory."""
    if node.target in further:
        return True
    if node.target in _RESHAPES:
        return _joins_dimensions(node)
    if node.target not in _REORDERS:
        return False
    asked = bind(node).get("memory_format")
    return node.target is aten.contiguous.default or asked not in (None, torch.preserve_format)


def _joins_dimensions(node: fx.Node) -> bool:
    """Whether a reshape joins dimensions. One that only splits them, or adds some of size 1, always gives a view."""
    source = node.args[0]
    before, after = (value.meta.get("val") for value in (source, node) if isinstance(value, fx.Node))
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return True
    return not _ends(before) <= _ends(after)


def _ends(tensor: Tensor) -> set[int]:
    """The numbers of values before each dimension's end: a tensor that is split further has these and more."""
    sizes = [size for size in map(_number, tensor.shape) if size != 1]
    return {math.prod(sizes[: number + 1]) for number in range(len(sizes))}


def _number(size: Any) -> int:
    return int(size.node.hint if isinstance(size, torch.SymInt) else size)
