"""Where an operation leaves one dimension of its input, if it treats every place along that dimension alike.

A ReLU leaves the channels where they were; a permutation takes them elsewhere; a mean over the pixels leaves them, and
one over the channels does not. This module answers for one operation at a time. Operations that change the number of
places along the dimension, such as concatenations, or that need more than one operand, are the caller's to follow.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from roundwise.graph.graph import bind
from roundwise.graph.operators import (
    ATTENTION,
    COPIES,
    DIMENSION_DROPPING,
    DROPOUTS,
    EXPANSIONS,
    FUNCTIONS,
    IDENTITIES,
    LIKE,
    MATRIX_PRODUCTS,
    OF_TWO,
    PADS,
    PERMUTATIONS,
    REDUCTIONS,
    REORDERINGS,
    RESHAPES,
    SELECTIONS,
    SOFTMAXES,
    SPLITS,
    SQUEEZES,
    WINDOW_DIMS,
)
from roundwise.graph.shapes import expression

aten = torch.ops.aten

_ALIKE = FUNCTIONS | DROPOUTS | IDENTITIES | COPIES | LIKE


def axis_after(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """The dimension of an operation's output that corresponds to a dimension of one of its operands, place by place.

    Args:
        node: an operation; of an operation with several outputs, the answer is true of all of them.
        source: one of its operands.
        axis: a dimension of `source`, counted from 0.

    Returns:
        None where the places are mixed, chosen from, or joined with others, or where that is not known.
    """
    if node.target is operator.getitem or node.target in _ALIKE:
        return axis
    if node.target in OF_TWO:
        return axis + int(node.meta["val"].dim()) - int(source.meta["val"].dim())
    if not isinstance(source.meta["val"], Tensor) or not node.args or node.args[0] is not source:
        return None
    dims, arguments = int(source.meta["val"].dim()), bind(node)
    if node.target in WINDOW_DIMS:
        return axis if axis < dims - WINDOW_DIMS[node.target] else None
    if node.target in SOFTMAXES:
        return axis if arguments["dim"] % dims != axis else None
    if node.target in REDUCTIONS:
        return _after_reduction(arguments, dims, axis)
    if node.target in SQUEEZES:
        return _after_squeeze(node, source, axis)
    if node.target in PERMUTATIONS:
        return _order(node, dims).index(axis)
    if node.target in SELECTIONS or node.target in SPLITS:
        dim = arguments["dim"] % dims
        gone = node.target in DIMENSION_DROPPING and dim < axis
        return None if dim == axis else axis - int(gone)
    if node.target in PADS:
        before, after = padding_along(node, axis)
        return axis if before == after == 0 else None
    if node.target in EXPANSIONS:
        return _after_expansion(node, source, axis)
    if node.target in REORDERINGS:
        return axis if axis not in {dim % dims for dim in arguments["dims"]} and arguments["dims"] else None
    return None


def padding_along(node: fx.Node, axis: int) -> tuple[int, int]:
    """How many places a padding adds before and after a dimension."""
    pad, last = bind(node)["pad"], int(node.meta["val"].dim()) - 1 - axis
    return tuple(pad[2 * last : 2 * last + 2]) or (0, 0)


def stays_apart(node: fx.Node, axis: int) -> bool:
    """Whether a dimension is kept apart up to a product that counts it as heads, or a reshape that merges it again."""
    for user in node.users:
        if user.target in RESHAPES:
            continue
        if user.target in MATRIX_PRODUCTS or user.target in ATTENTION:
            if axis >= int(node.meta["val"].dim()) - 2:
                return False
            continue
        after = axis_after(user, node, axis) if user.op == "call_function" else None
        if after is None or not stays_apart(user, after):
            return False
    return True


def _order(node: fx.Node, dims: int) -> list[int]:
    """Which dimension of the input each dimension of a permutation's output is."""
    arguments = bind(node)
    if node.target is aten.permute.default:
        return [dim % dims for dim in arguments["dims"]]
    order = list(range(dims))
    one, other = (arguments["dim0"] % dims, arguments["dim1"] % dims) if "dim0" in arguments else (0, dims - 1)
    order[one], order[other] = order[other], order[one]
    return order


def _after_reduction(arguments: dict[str, Any], dims: int, axis: int) -> int | None:
    given: Sequence[int] | int | None = arguments.get("dim")
    over = {given % dims} if isinstance(given, int) else {dim % dims for dim in given or range(dims)}
    if axis in over:
        return None
    return axis if arguments.get("keepdim") else axis - sum(dim < axis for dim in over)


def _after_squeeze(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    value, arguments = source.meta["val"], bind(node)
    if node.target is aten.unsqueeze.default:
        return axis + int(arguments["dim"] % (value.dim() + 1) <= axis)
    given = arguments.get("dim", range(value.dim()))
    named = {dim % value.dim() for dim in ([given] if isinstance(given, int) else given)}
    gone = {dim for dim in named if expression(value.shape[dim]) == 1}
    return None if axis in gone else axis - sum(dim < axis for dim in gone)


def _after_expansion(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    new = int(node.meta["val"].dim()) - int(source.meta["val"].dim())
    same = expression(node.meta["val"].shape[axis + new]) == expression(source.meta["val"].shape[axis])
    return axis + new if same else None
