"""The layers of a graph: weights, the operations that use them, and the functions that follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.graph.graph import Graph, bind
from roundwise.graph.matrix import LinearMap
from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.graph.operators import NONLINEARITIES, WEIGHTED, clamp_limits

aten = torch.ops.aten


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the operations that use it as one.

    Attributes:
        name: the module's name in the model where there is one (`features.0.conv`), else the weight's own.
        weight: name of the constant.
        calls: the operations, in order; several where a module is reused or weights are tied.
        map: the first call's linear map, with its bias.
        nonlinearity: the function between the first call and its only consumer, or None.
        own_bias: name of the constant that is this layer's bias and that nothing else reads; None if there is none.
        addend: the value that the output is added to, such as a shortcut: a float tensor of the same shape. None if
            there is none, if other operations read the output too, or if the layer has several calls.
    """

    name: str
    weight: str
    calls: tuple[fx.Node, ...]
    map: LinearMap
    nonlinearity: Nonlinearity | None
    own_bias: str | None
    addend: fx.Node | None = None

    @property
    def node(self) -> fx.Node:
        """The first call."""
        return self.calls[0]

    @property
    def input(self) -> fx.Node:
        """What the first call takes."""
        source = self.node.args[0]
        assert isinstance(source, fx.Node)
        return source


def find_layers(graph: Graph) -> list[Layer]:
    """All layers of a normalized graph, in the order of their first calls."""
    calls: dict[str, list[tuple[fx.Node, LinearMap]]] = {}
    for node in graph.operations.nodes:
        found = linear_map(graph, node)
        if found is not None:
            calls.setdefault(str(node.args[1].target), []).append((node, found))
    names = _layer_names(list(calls))
    layers = []
    for weight, ((first, layer), *others) in calls.items():
        # A weight may be used as two kinds of matrix; then only calls of the first kind are calls of the layer.
        alike = [node for node, other in others if _layout(other) == _layout(layer)]
        calls_alike = (first, *alike)
        nonlinearity, own_bias = _nonlinearity(graph, first, layer), _own_bias(graph, calls_alike)
        layers.append(Layer(names[weight], weight, calls_alike, layer, nonlinearity, own_bias, _addend(calls_alike)))
    return layers


def linear_map(graph: Graph, node: fx.Node) -> LinearMap | None:
    """The linear map of an operation; None if it is not one, or its weight or bias is not a constant."""
    if node.target not in WEIGHTED:
        return None
    arguments = bind(node)
    weight, bias = graph.constant(arguments["weight"]), graph.constant(arguments["bias"])
    if weight is None or (arguments["bias"] is not None and bias is None) or not weight.is_floating_point():
        return None
    if weight.dim() < 2 or weight.numel() == 0:
        return None
    arguments.setdefault("transposed", "transpose" in str(node.target))
    return LinearMap.from_arguments(weight, bias, arguments)


def channel_axis(node: fx.Node, layer: LinearMap) -> int:
    """The dimension of a layer's input or output along which channels lie.

    A convolution may have no batch dimension, and a linear layer may have others between the batch and its features.
    """
    return int(node.meta["val"].dim()) - max(layer.dims, 0) - 1


def weight_name(call: fx.Node) -> str:
    """The name of a layer's weight."""
    source = call.args[1]
    assert isinstance(source, fx.Node)
    return str(source.target)


def has_channels_second(node: fx.Node, layer: LinearMap) -> bool:
    """Whether channels are dimension 1 of a layer's input or output, as batch-norm and `prelu` expect them.

    They are not where a linear layer has dimensions between batch and features, or a convolution has no batch.
    """
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() == layer.dims + 2


def _layout(layer: LinearMap) -> tuple[tuple[int, int, int], bool]:
    return layer.matrix_shape, layer.transposed


def _layer_names(weights: list[str]) -> dict[str, str]:
    """`block.conv.weight` is the layer `block.conv`, unless another layer has that name."""
    short = {weight: weight.removesuffix(".weight") for weight in weights}
    count = Counter(short.values())
    return {weight: name if count[name] == 1 else weight for weight, name in short.items()}


def _own_bias(graph: Graph, calls: tuple[fx.Node, ...]) -> str | None:
    bias = bind(calls[0])["bias"]
    if len(calls) > 1 or not isinstance(bias, fx.Node):
        return None
    readers = [user for node in graph.operations.nodes if node.target == bias.target for user in node.users]
    return str(bias.target) if readers == [calls[0]] else None


def _addend(calls: tuple[fx.Node, ...]) -> fx.Node | None:
    # With several calls, weights chosen to compensate an error at one call would change all others.
    if len(calls) > 1 or len(calls[0].users) != 1:
        return None
    user = next(iter(calls[0].users))
    if user.target is not aten.add.Tensor or bind(user).get("alpha", 1) != 1:
        return None
    others = (source for source in user.all_input_nodes if source is not calls[0] and source.op == "call_function")
    return next((other for other in others if _alike(other.meta["val"], calls[0].meta["val"])), None)


def _alike(value: Any, output: Tensor) -> bool:
    """Whether a value is a float tensor of the output's shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return str(value.shape) == str(output.shape)  # as text: comparing symbolic sizes would fix them


def _nonlinearity(graph: Graph, node: fx.Node, layer: LinearMap) -> Nonlinearity | None:
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.target not in NONLINEARITIES or user.args[0] is not node or not callable(user.target):
        return None
    rest: list[Any] = []
    for argument in user.args[1:]:
        if isinstance(argument, fx.Node):
            constant = graph.constant(argument)
            # The slopes of a `prelu`: one, or one for each channel.
            if constant is None or (constant.numel() > 1 and not has_channels_second(node, layer)):
                return None
            argument = constant.float()
        rest.append(argument)
    function, named = user.target, dict(user.kwargs)

    def nonlinearity(values: Tensor) -> Tensor:
        return function(values, *rest, **named)  # type: ignore[no-any-return]

    return Nonlinearity(nonlinearity, clamp_limits(user))
