"""Where in a graph the layers are, and what follows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.graph.capture import Graph, bind
from roundwise.graph.matrix import LinearMap
from roundwise.graph.normalize import WEIGHTED

aten = torch.ops.aten

ACTIVATIONS = {
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.elu.default,
    aten.celu.default,
    aten.selu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.softplus.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.tanh.default,
}
"""Element-wise functions that may stand for f_a in Eq. 25."""


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """A weight and the operations that use it as one.

    Attributes:
        name: the module's name in the model where there is one (`features.0.conv`), else the weight's own.
        weight: name of the constant.
        calls: the operations, in order; several where a module is reused or weights are tied.
        map: the first call's linear map, with its bias.
        activation: the function between the first call and its only consumer, or None.
    """

    name: str
    weight: str
    calls: tuple[fx.Node, ...]
    map: LinearMap
    activation: Callable[[Tensor], Tensor] | None

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
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.operations.nodes:
        if node.target in WEIGHTED and linear_map(graph, node) is not None:
            calls.setdefault(str(node.args[1].target), []).append(node)
    names = _layer_names(list(calls))
    layers = []
    for weight, nodes in calls.items():
        first = linear_map(graph, nodes[0])
        assert first is not None
        # A weight that is used as two different kinds of matrix is quantized as the first; the layout must agree.
        alike = [node for node in nodes if _matrix_shape(graph, node) == (first.matrix_shape, first.transposed)]
        layers.append(Layer(names[weight], weight, tuple(alike), first, _activation(graph, nodes[0])))
    return layers


def linear_map(graph: Graph, node: fx.Node) -> LinearMap | None:
    """The linear map of an operation, or None if its weight or bias is not a constant."""
    arguments = bind(node)
    weight = graph.constant(arguments["weight"])
    bias = graph.constant(arguments["bias"])
    if weight is None or (arguments["bias"] is not None and bias is None) or not weight.is_floating_point():
        return None
    if weight.dim() < 2 or weight.numel() == 0:
        return None
    arguments.setdefault("transposed", "transpose" in str(node.target))
    return LinearMap.from_arguments(weight, bias, arguments)


def _matrix_shape(graph: Graph, node: fx.Node) -> tuple[tuple[int, int, int], bool] | None:
    found = linear_map(graph, node)
    return None if found is None else (found.matrix_shape, found.transposed)


def _layer_names(weights: list[str]) -> dict[str, str]:
    """`block.conv.weight` is the layer `block.conv`, unless that would make two layers one."""
    short = {weight: weight.removesuffix(".weight") for weight in weights}
    unique = len(set(short.values())) == len(short)
    return short if unique else {weight: weight for weight in weights}


def _activation(graph: Graph, node: fx.Node) -> Callable[[Tensor], Tensor] | None:
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if user.target not in ACTIVATIONS or user.args[0] is not node or not callable(user.target):
        return None
    rest: list[Any] = []
    for argument in user.args[1:]:
        if isinstance(argument, fx.Node):
            constant = graph.constant(argument)
            if constant is None:
                return None
            argument = constant.float()
        rest.append(argument)
    function, named = user.target, dict(user.kwargs)

    def activation(values: Tensor) -> Tensor:
        return function(values, *rest, **named)  # type: ignore[no-any-return]

    return activation
