"""Carry dropout through PyTorch's decompositions, which would drop it.

A model in evaluation exports dropout with its probability, as `aten.dropout(x, 0.3, False)`. But a graph with in-place
operations must go through `run_decompositions` to become pure, and that turns dropout into a copy, or into nothing:
PyTorch counts dropout among the operations that may return their input itself. So before the decompositions each
dropout is replaced by an operation that passes through them, and afterwards it is put back:

    dropout(x, 0.3, False)  →  native_dropout(x, 2.0, False)[0]  →  run_decompositions  →  dropout(x, 0.3, False)

The probability of the stand-in is 2 or more, which no dropout of the model has; it counts the dropouts of the model, so
that each comes back with its own settings. In-place dropout comes back as the pure operation.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from roundwise.graph.graph import bind
from roundwise.graph.transforms.drop_dropout import DROPOUTS

aten = torch.ops.aten

_PURE: dict[Any, Any] = {operation: operation for operation in DROPOUTS} | {
    aten.dropout_.default: aten.dropout.default,
    aten.feature_dropout_.default: aten.feature_dropout.default,
    aten.alpha_dropout_.default: aten.alpha_dropout.default,
    aten.feature_alpha_dropout_.default: aten.feature_alpha_dropout.default,
}
"""Each kind of dropout, in place or not, and the pure operation of that kind."""

_FIRST = 2.0
"""The probability of the first stand-in."""

Settings = list[tuple[Any, float]]
"""The operation and probability of each dropout, in the order of their stand-ins."""


def hide_dropout(operations: fx.Graph) -> Settings:
    """Replace every dropout that is switched off by a stand-in, and return what they were."""
    settings: Settings = []
    position = {node: number for number, node in enumerate(operations.nodes)}
    for node in list(operations.nodes):
        if node.target not in _PURE or bind(node)["train"]:
            continue
        source = node.args[0]
        assert isinstance(source, fx.Node)
        with operations.inserting_before(node):
            stand_in = operations.call_function(aten.native_dropout.default, (source, _FIRST + len(settings), False))
        stand_in.meta = dict(node.meta)
        settings.append((_PURE[node.target], bind(node)["p"]))
        if node.target not in DROPOUTS:  # in place: whoever reads the source afterwards reads the result
            for user in [user for user in source.users if position.get(user, -1) > position[node]]:
                user.replace_input_with(source, node)
        # The node keeps its name, by which the program knows its outputs.
        node.target, node.args, node.kwargs = operator.getitem, (stand_in, 0), {}
    return settings


def show_dropout(operations: fx.Graph, settings: Settings) -> None:
    """Put dropout back in the place of each stand-in that is left."""
    for stand_in in operations.find_nodes(op="call_function", target=aten.native_dropout.default):
        source, number, train = stand_in.args
        if not isinstance(number, float) or number < _FIRST:
            continue  # the model's own
        operation, probability = settings[int(number - _FIRST)]
        for result in list(stand_in.users):
            result.target, result.args = operation, (source, probability, train)
        operations.erase_node(stand_in)
