"""The few ways in which a graph is changed: what rewrites, folding and compression are made of.

All functions change the graph that they are given, so a method works on `graph.copy()`. What they insert has
`meta["val"]`, as all operations have. They follow two rules that no caller needs to think of:

- *Constants belong to all who read them.* A layer whose bias others read gets a bias of its own before it is changed.
- *Moments follow the output.* `Graph.moments` holds the mean and deviation of layers' outputs. Where an edit scales or
  shifts an output, they are scaled and shifted; where it makes up for a change of the layer's input, they stay; any
  other change of a weight or bias invalidates them by itself (`Graph.moments` says how).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch._ops import OpOverload

from roundwise.graph.analysis.layers import Layer, channel_axis, linear_map, weight_name
from roundwise.graph.graph import Graph, bind, set_argument
from roundwise.graph.matrix import LinearMap
from roundwise.graph.operators import LAYER_OPERATIONS, clamp_limits
from roundwise.graph.shapes import infer

aten = torch.ops.aten

# ----------------------------------------------------------------------------------------------------- operations


def insert_before(graph: Graph, place: fx.Node, operation: OpOverload, *arguments: Any) -> fx.Node:
    """A new operation before another one; nobody reads it yet."""
    with graph.operations.inserting_before(place):
        node = graph.operations.call_function(operation, arguments)
    node.meta["val"] = infer(graph, node)
    return node


def insert_after(graph: Graph, place: fx.Node, operation: OpOverload, *arguments: Any) -> fx.Node:
    """A new operation of a value, which all who read the value read instead.

    Args:
        graph: is changed.
        place: gives the value.
        operation: is called with `place` and the arguments.
        arguments: the further arguments.
    """
    readers = list(place.users)
    with graph.operations.inserting_after(place):
        node = graph.operations.call_function(operation, (place, *arguments))
    node.meta["val"] = infer(graph, node)
    reroute(place, node, readers)
    return node


def reroute(old: fx.Node, new: fx.Node, readers: Iterable[fx.Node]) -> None:
    """Let some of those who read one value read another instead."""
    for reader in readers:
        reader.replace_input_with(old, new)


def bypass(graph: Graph, node: fx.Node) -> None:
    """Take out an operation: who reads it reads its first operand. Records of dropped dropout move to that operand."""
    source = node.all_input_nodes[0]
    if "dropout" in node.meta:
        source.meta["dropout"] = (*source.meta.get("dropout", ()), *node.meta["dropout"])
    node.replace_all_uses_with(source)
    graph.operations.erase_node(node)


# ------------------------------------------------------------------------------------------------------ constants


def set_constant(graph: Graph, name: str, value: Tensor) -> None:
    """Give a constant another value, perhaps of another shape, for all who read it."""
    graph.constants[name] = value
    for node in graph.operations.find_nodes(op="get_attr", target=name):
        node.meta["val"] = value


def select_along(graph: Graph, name: str, dim: int, kept: Tensor) -> None:
    """Keep only some places of a constant along one dimension: removing rows, columns or channels."""
    set_constant(graph, name, graph.constants[name].index_select(dim, kept.to(graph.constants[name].device)))


def bias_name(weight: str) -> str:
    """The name for the new bias of a layer, such as `block.conv.bias` for `block.conv.weight`."""
    return f"{weight.removesuffix('weight')}bias" if weight.endswith("weight") else f"{weight}_bias"


# --------------------------------------------------------------------------------------------------------- layers


@final
class LayerEdit:
    """A layer's weight and bias in float64, to be changed and then stored in the weight's dtype.

    Methods named after outputs change what the layer gives, and its moments with it. Those named after inputs make up
    for a change of what the layer reads, so that it gives what it gave.

    Attributes:
        map: the layer's linear map before the edit.
        matrix: float64 `[groups, rows, cols]`.
        bias: float64 `[groups · rows]`, or None.
    """

    def __init__(self, graph: Graph, *calls: fx.Node) -> None:
        """Begin to edit the layer with these calls, which all read the same weight and bias."""
        layer = linear_map(graph, calls[0])
        assert layer is not None, f"'{calls[0].name}' is no layer"
        self.map = layer
        self.matrix: Float[Tensor, "groups rows cols"]
        self.matrix = self._old_matrix = layer.to_matrix(graph.constants[weight_name(calls[0])].double())
        self.bias = self._old_bias = None if layer.bias is None else layer.bias.double()
        self._graph, self._calls, self._weight = graph, calls, weight_name(calls[0])
        self._moments = graph.moments.get(self._weight)

    def scale_outputs(self, factor: Float[Tensor, "channels"]) -> None:
        """Multiply each output channel."""
        self.matrix = self.matrix * self._per_row(factor)
        self.bias = None if self.bias is None else self.bias * factor
        self._moments = None if self._moments is None else self._moments.scaled(factor)

    def divide_outputs(self, divisor: Float[Tensor, "channels"]) -> None:
        """Divide each output channel."""
        self.matrix = self.matrix / self._per_row(divisor)
        self.bias = None if self.bias is None else self.bias / divisor
        self._moments = None if self._moments is None else self._moments.scaled(1 / divisor)

    def shift_outputs(self, by: Float[Tensor, "channels"]) -> None:
        """Add a number to each output channel."""
        self.bias = by if self.bias is None else self.bias + by
        self._moments = None if self._moments is None else self._moments.shifted(by)

    def scale_inputs(self, factor: Float[Tensor, "channels"]) -> None:
        """Multiply the weights that read each input channel, which now comes divided by the factor."""
        self.matrix = self.matrix * self.map.columns_of_channels(factor).unsqueeze(1)

    def absorb(self, outputs: Float[Tensor, "channels"]) -> None:
        """Add to the bias what the layer gave for a constant part of its input, which now comes without that part."""
        self.bias = outputs if self.bias is None else self.bias + outputs

    def response(self, inputs: Float[Tensor, "channels"]) -> Float[Tensor, "channels"]:
        """W c: what a constant in each input channel adds to every output, away from borders."""
        return torch.einsum("grc,gc->gr", self.matrix, self.map.columns_of_channels(inputs)).flatten()

    def is_finite(self) -> bool:
        """Whether weight and bias hold only finite numbers in the weight's dtype."""
        values = (self.matrix, self.bias)
        return all(value is None or bool(value.to(self._dtype).isfinite().all()) for value in values)

    def store(self) -> None:
        """Give the layer what has changed, under the names that it had; a bias that others read too is left to them."""
        if self.matrix is not self._old_matrix:
            self._graph.constants[self._weight] = self.map.to_weight(self.matrix).to(self._dtype).contiguous()
        if self.bias is not None and self.bias is not self._old_bias:
            self._store_bias(self.bias.to(self._dtype))
        if self._moments is not None:
            self._graph.record_moments(self._weight, self._moments)
        self._old_matrix, self._old_bias = self.matrix, self.bias

    def _store_bias(self, bias: Tensor) -> None:
        old = bind(self._calls[0])["bias"]
        if old is not None and set(old.users) == set(self._calls):
            self._graph.constants[str(old.target)] = bias
            return
        new = self._graph.add_constant(bias_name(self._weight), bias)
        for call in self._calls:
            set_argument(call, "bias", new)

    @property
    def _dtype(self) -> torch.dtype:
        return self._graph.constants[self._weight].dtype

    def _per_row(self, values: Tensor) -> Tensor:
        return values.reshape(*self.matrix.shape[:2], 1)


def select_inputs(graph: Graph, layer: Layer, index: Tensor, weight: Tensor) -> None:
    """Let a layer read chosen channels of its input, some perhaps twice, with a weight that gives the same output.

    Args:
        graph: is changed.
        layer: not grouped.
        index: which channel of the input each new channel is, int64 `[channels]`.
        weight: with as many input channels.
    """
    moments = graph.moments.get(layer.weight)
    set_constant(graph, layer.weight, weight)
    chosen = graph.add_constant(f"{layer.weight}_channels", index)
    for call in layer.calls:
        source = call.args[0]
        assert isinstance(source, fx.Node)
        selected = insert_before(
            graph, call, aten.index_select.default, source, channel_axis(source, layer.map), chosen
        )
        set_argument(call, "input", selected)
    if moments is not None:
        graph.record_moments(layer.weight, moments)


def split_layer(graph: Graph, layer: Layer, parts: Sequence[tuple[LinearMap, Tensor]]) -> list[fx.Node]:
    """Replace a layer by several that run one after the other, as a factorization does.

    The parts of the layer `block.conv` are `block.conv.0`, `block.conv.1` and so on. What the layer's output was
    followed by follows the last part; the constants of the old layer stay until `Graph.prune`.

    Args:
        graph: is changed.
        layer: all its calls are replaced.
        parts: the linear map of each new layer, with its bias, and its weight; at least one.

    Returns:
        The last operation of each call, in the order of the calls: what now gives the layer's output.
    """
    constants = []
    for number, (part, weight) in enumerate(parts):
        # `block.conv.weight` becomes `block.conv.0.weight`; a weight of another name becomes `name.0.weight`.
        name = f"{layer.weight.removesuffix('.weight')}.{number}.weight"
        bias = None if part.bias is None else graph.add_constant(bias_name(name), part.bias)
        constants.append((part, graph.add_constant(name, weight), bias))
    last = []
    for call in layer.calls:
        value = call.args[0]
        for part, weight_node, bias in constants:
            value = insert_before(graph, call, *_operation(part, value, weight_node, bias))
        assert isinstance(value, fx.Node)
        call.replace_all_uses_with(value)
        graph.operations.erase_node(call)
        last.append(value)
    return last


def _operation(part: LinearMap, source: Any, weight: fx.Node, bias: fx.Node | None) -> tuple[Any, ...]:
    """The operation that computes a linear map, and its arguments."""
    named = " with named padding" if isinstance(part.padding, str) else ""
    operation = LAYER_OPERATIONS[part.operation + named]
    if part.dims == 0:
        return operation, source, weight, bias
    padding = part.padding if isinstance(part.padding, str) else list(part.padding)
    stride, dilation = list(part.stride), list(part.dilation)
    if part.transposed:
        rest = (stride, padding, list(part.output_padding), part.groups, dilation)
        return operation, source, weight, bias, *rest
    return operation, source, weight, bias, stride, padding, dilation, part.groups


# --------------------------------------------------------------------------------------------------------- clamps


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

    def insert(operation: Any, source: fx.Node, limit: float | Tensor | None = None) -> fx.Node:
        constant = () if limit is None else (graph.add_constant(name, change(limit).to(value.dtype)),)
        with graph.operations.inserting_before(node):
            new = graph.operations.call_function(operation, (source, *constant))
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
