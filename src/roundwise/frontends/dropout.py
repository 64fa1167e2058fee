"""Keep dropout, with its probability, in a program of `torch.export`.

A model in evaluation exports dropout as `aten.dropout(x, 0.3, False)`. Two things would lose it, or misplace it:

1. Dropout of whole channels and alpha dropout return their input itself in evaluation. PyTorch's tracer cannot tell the
   two apart then, and every later use of the input becomes a use of the result: `x + drop(x)` is captured as
   `drop(x) + drop(x)`. So while the model is traced, these operations get an alias of their input (`DistinctDropout`).
   The stand-ins of step 2 get one too, for the same reason.

2. A graph with in-place operations must go through `run_decompositions` to become pure, and that turns dropout into a
   copy, or into nothing. So each dropout is replaced by an operation that passes through them, and is put back
   afterwards (`hide_dropout`, `show_dropout`):

       dropout(x, 0.3, False)  →  native_dropout(alias(x), 2.0, False)[0]  →  decompositions  →  dropout(x, 0.3, False)

   The probability of the stand-in is 2 or more, which no dropout of the model has; it counts the dropouts, so that each
   comes back with its own settings. In-place dropout comes back as the pure operation.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import fx
from torch.overrides import TorchFunctionMode

from roundwise.graph.graph import bind
from roundwise.graph.operators import DROPOUTS

aten = torch.ops.aten

_PURE: dict[Any, Any] = {operation: operation for operation in DROPOUTS} | {
    aten.dropout_.default: aten.dropout.default,
    aten.feature_dropout_.default: aten.feature_dropout.default,
    aten.alpha_dropout_.default: aten.alpha_dropout.default,
    aten.feature_alpha_dropout_.default: aten.feature_alpha_dropout.default,
}
"""Each kind of dropout, in place or not, and the pure operation of that kind."""

_RETURN_INPUT = {
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.feature_dropout,
    torch.alpha_dropout,
    torch.feature_alpha_dropout,
}
"""Functions that return their input itself in evaluation, as the tracer sees it."""

_FIRST = 2.0
"""The probability of the first stand-in."""

Settings = list[tuple[Any, float]]
"""The operation and probability of each dropout, in the order of their stand-ins."""


@final
class DistinctDropout(TorchFunctionMode):
    """While it is active, no dropout returns its input itself, unless it is in place."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RETURN_INPUT and args and not (kwargs.get("inplace") or args[3:] == (True,)):
            args = (aten.alias.default(args[0]), *args[1:])
        return func(*args, **kwargs)


def hide_dropout(operations: fx.Graph) -> Settings:
    """Replace every dropout that is switched off by a stand-in, and return what they were.

    In-place dropout of memory that is also read in other ways stays as it is: no pure operation does the same.
    """
    settings: Settings = []
    position = {node: number for number, node in enumerate(operations.nodes)}
    for node in list(operations.nodes):
        if node.target not in _PURE or bind(node)["train"]:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if node.target not in DROPOUTS and _overwrites_more_than_its_result(node, position):
            continue
        with operations.inserting_before(node):
            alias = operations.call_function(aten.alias.default, (source,))
            stand_in = operations.call_function(aten.native_dropout.default, (alias, _FIRST + len(settings), False))
        alias.meta, stand_in.meta = dict(source.meta), dict(node.meta)
        settings.append((_PURE[node.target], bind(node)["p"]))
        # The node keeps its name, by which the program knows its outputs.
        node.target, node.args, node.kwargs = operator.getitem, (stand_in, 0), {}
    return settings


def _overwrites_more_than_its_result(node: fx.Node, position: Mapping[fx.Node, int]) -> bool:
    """Whether another operation reads, through another view, the memory that an in-place operation overwrites.

    (What reads the overwritten tensor itself afterwards is traced as reading the result.)
    """
    reader, source = node, node.args[0]
    while isinstance(source, fx.Node):
        for user in source.users:
            if user is not reader and (_may_alias(user) or position.get(user, -1) > position[node]):
                return True
        if not _may_alias(source):
            return False
        reader, source = source, source.args[0]
    return False


def _may_alias(node: fx.Node) -> bool:
    """Whether an operation may return the memory of an operand."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(value.alias_info is not None for value in schema.returns)


def show_dropout(operations: fx.Graph, settings: Settings) -> None:
    """Put dropout back in the place of each stand-in that is left."""
    for stand_in in operations.find_nodes(op="call_function", target=aten.native_dropout.default):
        source, number, train = stand_in.args
        if not isinstance(number, float) or number < _FIRST:
            continue  # the model's own
        operation, probability = settings[int(number - _FIRST)]
        while isinstance(source, fx.Node) and source.target is aten.alias.default:
            source = source.args[0]
        for result in list(stand_in.users):
            result.target, result.args = operation, (source, probability, train)
        operations.erase_node(stand_in)
