"""Pairs of layers that follow each other: the second undoes what is done to the output channels of the first.

If a method scales or shifts the output channels of one layer, the next layer's weights and bias can make up for it, as
long as no operation between the two mixes channels. `find_pairs` finds two layers where

1. nothing else reads the weights of both, the bias of the first, or a value between them;
2. each operation between them keeps channels apart. It is either a function of single numbers, and the method says
   which functions it can handle; or it is pooling, padding, resizing, a mean over pixels, or flattening before a linear
   layer. After flattening, a channel has one column for each pixel.

Additions and concatenations have two operands, so no pair reaches across one. `channels.py` follows channels there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.graph.analysis.layers import channel_axis, linear_map, weight_name
from roundwise.graph.graph import Graph, bind
from roundwise.graph.operators import (
    AVERAGE_POOLS,
    EXTREMES,
    PADS,
    RECTIFIERS,
    RESHAPES,
    WINDOW_DIMS,
    clamp_limits,
    padded_number,
)

aten = torch.ops.aten

_ELEMENTWISE = RECTIFIERS | EXTREMES


@final
@dataclass(frozen=True)
class Place:
    """Where a layer's channels are in a value: along dimension `axis`, each `repeats` times in a row."""

    axis: int
    repeats: int = 1

    def along(self, values: Tensor, dims: int) -> Tensor:
        """One number for each channel, `[channels]`, in a shape that broadcasts with a value of `dims` dimensions."""
        shape = [1] * dims
        shape[self.axis] = -1
        return values.repeat_interleave(self.repeats).reshape(shape)

    def channels(self, constant: Tensor, channels: int, dims: int) -> Tensor | None:
        """The inverse of `along`: one number for each channel, float64.

        Returns:
            None where the constant has different numbers within a channel.
        """
        if constant.numel() == 1:
            return constant.double().reshape(1).expand(channels)
        shape = [1] * (dims - constant.dim()) + list(constant.shape)
        if constant.numel() != channels * self.repeats or shape[self.axis] != constant.numel():
            return None
        values = constant.double().reshape(channels, self.repeats)
        return values[:, 0] if bool((values == values[:, :1]).all()) else None


@final
@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers with the same channels between them.

    Attributes:
        first, second: the calls.
        channels: how many output channels the first has.
        functions: the functions of single numbers between them, in order, and where the channels are there.
        pads: whether a padding between them, or the second layer's own, puts zeros around the values.
    """

    first: fx.Node
    second: fx.Node
    channels: int
    functions: tuple[tuple[fx.Node, Place], ...]
    pads: bool

    @property
    def weights(self) -> tuple[str, str]:
        """The names of both weights."""
        return weight_name(self.first), weight_name(self.second)


def find_pairs(graph: Graph, accepts: Callable[[fx.Node], bool]) -> list[Pair]:
    """The pairs of layers in a graph, in the order of the first.

    Args:
        graph: in normal form.
        accepts: whether a function of single numbers may stand between two layers.
    """
    return [pair for node in graph.operations.nodes if (pair := _pair(graph, node, accepts)) is not None]


def _pair(graph: Graph, first: fx.Node, accepts: Callable[[fx.Node], bool]) -> Pair | None:
    """The pair that begins with a node, if one does."""
    layer = linear_map(graph, first)
    if layer is None or not _alone(first, "weight", "bias"):
        return None
    groups, rows, _ = layer.matrix_shape
    node, place = first, Place(channel_axis(first, layer))
    functions: list[tuple[fx.Node, Place]] = []
    pads = False
    while len(node.users) == 1:
        user = next(iter(node.users))
        second = linear_map(graph, user)
        if second is not None:
            # The layer reads the node as its input, not as its weight: weights are constants.
            fits = place.axis == channel_axis(node, second) and _alone(user, "weight")
            return Pair(first, user, groups * rows, tuple(functions), pads or second.pads) if fits else None
        if user.op != "call_function" or not user.args or user.args[0] is not node:
            return None
        if is_elementwise(graph, user):
            if not accepts(user):
                return None
            functions.append((user, place))
        else:
            after = place_after(user, place)
            if after is None:
                return None
            place = after
            pads |= user.target in PADS or (user.target in AVERAGE_POOLS and any(_numbers(bind(user)["padding"])))
        node = user
    return None


def is_elementwise(graph: Graph, node: fx.Node) -> bool:
    """Whether an operation is a ReLU of some kind or a clamp, with limits that are numbers or constants."""
    if node.target not in EXTREMES:
        return node.target in _ELEMENTWISE or clamp_limits(node) is not None
    if graph.constant(node.args[1]) is None:
        return False
    shapes = [str(list(it.meta["val"].shape)) for it in (node, node.args[0]) if isinstance(it, fx.Node)]
    return shapes[0] == shapes[1]


def extreme_limits(graph: Graph, node: fx.Node, place: Place) -> tuple[Tensor | float, Tensor | float] | None:
    """The limits of a minimum or maximum with a constant: numbers, or one float64 `[channels]`.

    Returns:
        None for other operations, and where the constant has different numbers within a channel.
    """
    constant = graph.constant(node.args[1]) if node.target in EXTREMES else None
    if constant is None:
        return None
    value = node.meta["val"]
    limit = place.channels(constant, int(value.shape[place.axis]) // place.repeats, value.dim())
    if limit is None:
        return None
    return (-math.inf, limit) if node.target is aten.minimum.default else (limit, math.inf)


def place_after(node: fx.Node, place: Place) -> Place | None:
    """Where channels are after an operation that keeps them apart; None if it does not, or if that is not known."""
    source, arguments = node.args[0], bind(node)
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    if node.target in RESHAPES:
        before, after = value.shape, node.meta["val"].shape
        flat = len(after) == 2 and len(before) >= 2 and str(before[0]) == str(after[0])
        sizes = list(before[2:])
        if not flat or place != Place(1) or not all(isinstance(size, int) for size in sizes):
            return None
        return Place(1, math.prod(sizes))
    if node.target is aten.mean.dim:
        over = {dim % value.dim() for dim in arguments["dim"] or range(value.dim())}
        if place.axis in over or arguments["dtype"] is not None:
            return None
        gone = 0 if arguments["keepdim"] else sum(dim < place.axis for dim in over)
        return Place(place.axis - gone, place.repeats)
    if arguments.get("divisor_override") is not None:
        return None  # not a mean: divided by another number than that of the values
    last = WINDOW_DIMS.get(node.target, 0)
    if node.target in PADS and padded_number(node) in (0, None):
        last = len(arguments["pad"]) // 2
    return place if last and place.axis < value.dim() - last else None


def _alone(call: fx.Node, *names: str) -> bool:
    """Whether nobody but the call reads its weight, or its weight and bias."""
    arguments = bind(call)
    return all(arguments[name] is None or set(arguments[name].users) == {call} for name in names)


def _numbers(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
