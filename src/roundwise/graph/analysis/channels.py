"""Where the channels of a layer go: along operations that keep them apart, up to the layer that reads them.

What a method does to the output channels of one layer (scale them, shift them) the next layer's input channels can
undo, if nothing between the two mixes channels. Such a *pair* has these properties: neither layer shares its weight,
the first does not share its bias, nobody else reads what is between them, and each operation there either works element
by element (whether it will do is for the method to say) or keeps channels apart: pooling, padding with zeros or with
what is there, resizing, means over places, and flattening before a linear layer, which makes several columns of a
channel. Anything else, such as additions and concatenations, ends the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.graph.analysis.layers import clamp_limits, linear_map
from roundwise.graph.graph import Graph, bind
from roundwise.graph.matrix import LinearMap

aten = torch.ops.aten

EXTREMES = frozenset({aten.minimum.default, aten.maximum.default})
"""Clamps whose limit may be a tensor, with one number for each channel."""

_ELEMENTWISE = frozenset({aten.relu.default, aten.leaky_relu.default, aten.prelu.default, *EXTREMES})
PADS = frozenset({aten.constant_pad_nd.default, aten.pad.default})
_RESHAPES = frozenset({aten.flatten.using_ints, aten.view.default, aten.reshape.default})
_AVERAGES = frozenset({aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default})
# How many of the last dimensions they work over, each channel by itself.
_OVER_PLACES: dict[Any, int] = {
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten.adaptive_avg_pool1d.default: 1,
    aten.adaptive_avg_pool2d.default: 2,
    aten.adaptive_avg_pool3d.default: 3,
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
    aten.upsample_bilinear2d.default: 2,
    aten.upsample_bilinear2d.vec: 2,
    aten.upsample_nearest2d.default: 2,
    aten.upsample_nearest2d.vec: 2,
}


@final
@dataclass(frozen=True)
class Place:
    """Where a layer's channels are in a value made of its output: on an axis, each `repeats` times in a row."""

    axis: int
    repeats: int = 1

    def along(self, values: Tensor, dims: int) -> Tensor:
        """One number for each channel `[channels]`, in the shape that broadcasts with a value of so many dimensions."""
        shape = [1] * dims
        shape[self.axis] = -1
        return values.repeat_interleave(self.repeats).reshape(shape)

    def channels(self, constant: Tensor, channels: int, dims: int) -> Tensor | None:
        """The inverse of `along`, float64: one number for each channel; None where a constant has others as well."""
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
        functions: what works element by element between them, in order, and where the channels are there.
        pads: whether zeros come to lie among the channels' values on the way, or in the second layer's own padding.
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
        accepts: whether an operation that works element by element may stand between two layers.
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
            # What it reads is its input: a weight is a constant.
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
            pads |= user.target in PADS or (user.target in _AVERAGES and any(_numbers(bind(user)["padding"])))
        node = user
    return None


def is_elementwise(graph: Graph, node: fx.Node) -> bool:
    """Whether an operation is a clamp, or a ReLU of some kind; a clamp's limits may be constants of their own."""
    if node.target not in EXTREMES:
        return node.target in _ELEMENTWISE or clamp_limits(node) is not None
    if graph.constant(node.args[1]) is None:
        return False
    shapes = [str(list(it.meta["val"].shape)) for it in (node, node.args[0]) if isinstance(it, fx.Node)]
    return shapes[0] == shapes[1]


def place_after(node: fx.Node, place: Place) -> Place | None:
    """Where channels are after an operation that keeps them apart; None if it may not."""
    source, arguments = node.args[0], bind(node)
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    if node.target in _RESHAPES:
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
        return None  # no mean: it may be as much larger as it likes
    last = _OVER_PLACES.get(node.target, 0)
    if node.target in PADS and (arguments.get("mode", "constant") != "constant" or arguments["value"] in (0, None)):
        last = len(arguments["pad"]) // 2
    return place if last and place.axis < value.dim() - last else None


def channel_axis(node: fx.Node, layer: LinearMap) -> int:
    """Of a layer's input or output; a batch dimension may be missing, and positions may stand before features."""
    return int(node.meta["val"].dim()) - max(layer.dims, 0) - 1


def weight_name(call: fx.Node) -> str:
    """The name of a layer's weight."""
    source = call.args[1]
    assert isinstance(source, fx.Node)
    return str(source.target)


def change_limits(
    graph: Graph,
    node: fx.Node,
    name: str,
    change: Callable[[float | Tensor], Tensor],
    *,
    to_relu: bool = False,
) -> None:
    """Give a clamp other limits, one for each channel: it becomes a ReLU or a maximum, and a minimum, with constants.

    Args:
        graph: is changed.
        node: a clamp, or a minimum or maximum with a constant.
        name: of the new constants, to be made unique.
        change: the new limit, in float64 and of a shape that broadcasts with the value; 0 below stays 0.
        to_relu: leave out the upper limit.
    """
    value, limits = node.meta["val"], clamp_limits(node)

    def insert(target: object, source: fx.Node, limit: float | Tensor | None = None) -> fx.Node:
        arguments = [source]
        if limit is not None:
            arguments.append(graph.add_constant(name, change(limit).to(value.dtype)))
        with graph.operations.inserting_before(node):
            new = graph.operations.call_function(target, tuple(arguments))  # type: ignore[arg-type]  # it is callable
        new.meta = dict(node.meta)
        return new

    result = node.args[0]
    assert isinstance(result, fx.Node)
    if limits is None:
        constant = graph.constant(node.args[1])
        assert constant is not None
        result = insert(node.target, result, constant.double())
    else:
        low, high = limits
        if low == 0:
            result = insert(aten.relu.default, result)
        elif low > -math.inf:
            result = insert(aten.maximum.default, result, low)
        if high < math.inf and not to_relu:
            result = insert(aten.minimum.default, result, high)
    node.replace_all_uses_with(result)
    graph.operations.erase_node(node)


def _alone(call: fx.Node, *names: str) -> bool:
    """Whether nobody but the call reads its weight, or its weight and bias."""
    arguments = bind(call)
    return all(arguments[name] is None or set(arguments[name].users) == {call} for name in names)


def _numbers(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
