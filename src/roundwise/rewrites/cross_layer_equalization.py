"""Cross-layer equalization (CLE): scale channels up in one layer and down in the next, until ranges are alike.

Between two layers stands a function f with f(s x) = s f(x) for s > 0, element by element: nothing, ReLU, leaky ReLU and
PReLU, whatever its slopes. With any S = diag(s), s > 0,

    W₂ f(W₁ x + b₁) + b₂ = (W₂ S) f(S⁻¹ W₁ x + S⁻¹ b₁) + b₂

What changes is how well each channel uses a grid that is shared by all. Let r₁ᵢ be the largest |weight| of output
channel i in the first layer, r₂ᵢ that of input channel i in the second, and R₁, R₂ the largest of all channels. Of its
grid, channel i has the share rᵢ/R. The best s makes Σᵢ (r₁ᵢ/R₁)(r₂ᵢ/R₂) as large as can be, and is

    sᵢ = √(r₁ᵢ r₂ᵢ) / r₂ᵢ                                                                            (Eq. 11)

*Proof.* With s the ranges are r₁ᵢ/sᵢ and r₂ᵢ sᵢ. Their product is r₁ᵢ r₂ᵢ, whatever s, and so the sum is Σᵢ r₁ᵢ r₂ᵢ
divided by R₁(s) R₂(s). Since R₁(s) R₂(s) ≥ (r₁ᵢ/sᵢ)(r₂ᵢ sᵢ) = r₁ᵢ r₂ᵢ for each i, it is at least maxᵢ r₁ᵢ r₂ᵢ. Eq. 11
makes both ranges √(r₁ᵢ r₂ᵢ), so R₁(s) R₂(s) is that bound. ∎

*Chains.* A layer may be second of one pair and first of the next, as depthwise convolutions are; pairs are then
equalized in turn, over and over. In the logarithms of all s a sweep is no expansion in the largest norm (a maximum of
shifted numbers moves no further than they do), so no sweep changes more than the one before.

*Clamps.* ReLU6 and other clamps do not scale by themselves, but clamp(x, l, u)/s = clamp(x/s, l/s, u/s): with limits
for each channel they do. This is exact, and the default: the operation becomes a ReLU (or a maximum) and a minimum with
a constant. The methods that look at the function after a layer see the ReLU, and not the minimum that follows it; where
the lower limit is another than 0, no function. Where activations are quantized, the quantizer stands after the minimum.
The source replaces ReLU6 by ReLU, which changes the network; so does `relu6="relu"`.

*Where pairs are.* Neither layer shares its weight, the first does not share its bias, nobody else reads what is between
them, and each operation there keeps channels apart: pooling, padding with zeros or with what is there, resizing, means
over places, and flattening before a linear layer, which makes several columns of a channel. Anything else, such as
additions and concatenations, ends a chain.

A channel whose range, in one of the two layers, is 0 or below 2⁻⁸⁰ of the layer's largest keeps s = 1, so that no s is
beyond what float32 holds. Channels that are merely negligible are scaled as all others: trained networks have some with
weights of 10⁻¹² in one layer and of 50 in the next, whose grid they would spoil for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, fx

from roundwise.errors import RecipeError
from roundwise.graph.graph import Graph, bind
from roundwise.graph.matrix import LinearMap
from roundwise.graph.patterns import clamp_limits, linear_map
from roundwise.problem import Rewrite, check_types

aten = torch.ops.aten

Clamps = Literal["clip-per-channel", "keep", "relu"]

DEAD = 2.0**-80
"""Channels with a smaller share of their layer's range are left alone."""

_EQUIVARIANT = frozenset({aten.relu.default, aten.leaky_relu.default, aten.prelu.default})
_EXTREMES = frozenset({aten.minimum.default, aten.maximum.default})
_PADS = frozenset({aten.constant_pad_nd.default, aten.pad.default})
_RESHAPES = frozenset({aten.flatten.using_ints, aten.view.default, aten.reshape.default})
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
class _Place:
    """Where a layer's channels are in a value made of its output: on an axis, each `repeats` times in a row."""

    axis: int
    repeats: int = 1


@final
@dataclass(frozen=True, eq=False)
class Pair:
    """Two layers with the same channels between them.

    Attributes:
        first, second: the calls.
        channels: how many output channels the first has.
        clamps: operations between them whose limits scale with the channels, and where the channels are.
    """

    first: fx.Node
    second: fx.Node
    channels: int
    clamps: tuple[tuple[fx.Node, _Place], ...]

    @property
    def weights(self) -> tuple[str, str]:
        """The names of both weights."""
        return _weight(self.first), _weight(self.second)


@final
@dataclass(frozen=True)
class CrossLayerEqualization(Rewrite):
    """Make the ranges of channels alike in layers that follow each other.

    Args:
        relu6: what to do about ReLU6 and other clamps between two layers: "clip-per-channel" scales their limits, which
            is exact; "keep" equalizes nothing across them; "relu" replaces those from 0 up by ReLU where it equalizes,
            as the source does, which changes what the network computes (the report says how much).
        tolerance: chains are equalized until no scale changes by more than this share of itself in a sweep, above 0.
        max_iterations: sweeps over all pairs, at least 1; outputs are the same however many there were.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, Section 4.1.
    """

    relu6: Clamps = "clip-per-channel"
    tolerance: float = 0.01
    max_iterations: int = 200

    def __post_init__(self) -> None:
        check_types(self)
        if not self.tolerance > 0:
            raise RecipeError(f"{self}: the tolerance is a share of a scale, above 0; 0.01 is usual.")
        if self.max_iterations < 1:
            raise RecipeError(f"{self}: max_iterations counts sweeps over all pairs; it must be at least 1.")

    @property
    def exact(self) -> bool:
        return self.relu6 != "relu"

    def note(self, graph: Graph) -> str:
        count = len(pairs(graph, self.relu6))
        return f"{count} pairs of layers with channels in common" if count else "no pair of layers to equalize"

    def apply(self, graph: Graph) -> Graph:
        graph = graph.copy()
        found = pairs(graph, self.relu6)
        layers = {_weight(node): _linear_map(graph, node) for pair in found for node in (pair.first, pair.second)}
        matrices = {name: layer.to_matrix(graph.constants[name].double()) for name, layer in layers.items()}
        for pair, scale in zip(found, self._scales(found, matrices), strict=True):
            if bool((scale == 1).all()):
                continue
            first, second = pair.weights
            matrices[first] = _scaled_rows(matrices[first], scale)
            matrices[second] = _scaled_columns(matrices[second], scale)
            for name in pair.weights:
                weight = layers[name].to_weight(matrices[name]).to(graph.constants[name].dtype)
                graph.constants[name] = weight.contiguous()
            bias = bind(pair.first)["bias"]
            if bias is not None:
                value = graph.constants[str(bias.target)]
                graph.constants[str(bias.target)] = (value.double() / scale).to(value.dtype)
            for clamp, place in pair.clamps:
                _scale_clamp(graph, clamp, place, scale, f"{first}_limit", to_relu=self.relu6 == "relu")
        graph.prune()
        return graph

    def _scales(self, found: Sequence[Pair], matrices: dict[str, Tensor]) -> list[Tensor]:
        """s of each pair, float64 `[channels]`; all 1 where they are so already, but for the tolerance."""
        sizes = {name: matrix.abs() for name, matrix in matrices.items()}
        alive = [
            torch.stack([r > DEAD * r.max() for r in _ranges(pair, sizes)]).all(0) for pair in found
        ]  # once for all, so that no channel comes and goes
        ones = [torch.ones_like(mask, dtype=torch.float64) for mask in alive]
        totals = ones
        for sweep in range(self.max_iterations):
            change, before = 0.0, totals
            totals = []
            for pair, mask, total in zip(found, alive, before, strict=True):
                r1, r2 = _ranges(pair, sizes)
                scale = torch.where(mask, (r1 / r2).sqrt(), 1.0)
                first, second = pair.weights
                sizes[first] = _scaled_rows(sizes[first], scale)
                sizes[second] = _scaled_columns(sizes[second], scale)
                totals.append(total * scale)
                change = max(change, float(scale.log().abs().max()))
            if change <= self.tolerance:
                return ones if sweep == 0 else totals
        return totals


def pairs(graph: Graph, relu6: Clamps = "clip-per-channel") -> list[Pair]:
    """The pairs of layers in a graph that can be equalized, in the order of the first."""
    return [pair for node in graph.operations.nodes if (pair := _pair(graph, node, relu6)) is not None]


def _pair(graph: Graph, first: fx.Node, relu6: Clamps) -> Pair | None:
    """The pair that begins with a node, if one does."""
    layer = linear_map(graph, first)
    if layer is None or not _alone(first, "weight", "bias"):
        return None
    groups, rows, _ = layer.matrix_shape
    node, place = first, _Place(_channel_axis(first, layer))
    clamps: list[tuple[fx.Node, _Place]] = []
    while len(node.users) == 1:
        user = next(iter(node.users))
        second = linear_map(graph, user)
        if second is not None:
            # What it reads is its input: a weight is a constant.
            fits = place.axis == _channel_axis(node, second) and _alone(user, "weight")
            return Pair(first, user, groups * rows, tuple(clamps)) if fits else None
        if user.op != "call_function" or not user.args or user.args[0] is not node:
            return None
        if not _is_equivariant(user):
            if _is_clamp(graph, user, relu6):
                clamps.append((user, place))
            else:
                after = _place_after(user, place)
                if after is None:
                    return None
                place = after
        node = user
    return None


def _alone(call: fx.Node, *names: str) -> bool:
    """Whether nobody but the call reads its weight, or its weight and bias."""
    arguments = bind(call)
    return all(arguments[name] is None or set(arguments[name].users) == {call} for name in names)


def _channel_axis(node: fx.Node, layer: LinearMap) -> int:
    """Of a layer's input or output; a batch dimension may be missing, and positions may stand before features."""
    return int(node.meta["val"].dim()) - max(layer.dims, 0) - 1


def _is_equivariant(node: fx.Node) -> bool:
    return node.target in _EQUIVARIANT or clamp_limits(node) in ((0, math.inf), (-math.inf, math.inf))


def _is_clamp(graph: Graph, node: fx.Node, relu6: Clamps) -> bool:
    """Whether an operation is a clamp that shall be scaled, or replaced."""
    limits = clamp_limits(node)
    if limits is not None:
        return relu6 == "clip-per-channel" or (relu6 == "relu" and limits[0] == 0)
    if node.target not in _EXTREMES or graph.constant(node.args[1]) is None:
        return False
    shapes = [str(list(it.meta["val"].shape)) for it in (node, node.args[0]) if isinstance(it, fx.Node)]
    return relu6 == "clip-per-channel" and shapes[0] == shapes[1]


def _place_after(node: fx.Node, place: _Place) -> _Place | None:
    """Where channels are after an operation that keeps them apart; None if it may not."""
    source, arguments = node.args[0], bind(node)
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    if node.target in _RESHAPES:
        before, after = value.shape, node.meta["val"].shape
        flat = len(after) == 2 and len(before) >= 2 and str(before[0]) == str(after[0])
        sizes = list(before[2:])
        if not flat or place != _Place(1) or not all(isinstance(size, int) for size in sizes):
            return None
        return _Place(1, math.prod(sizes))
    if node.target is aten.mean.dim:
        over = {dim % value.dim() for dim in arguments["dim"] or range(value.dim())}
        if place.axis in over or arguments["dtype"] is not None:
            return None
        gone = 0 if arguments["keepdim"] else sum(dim < place.axis for dim in over)
        return _Place(place.axis - gone, place.repeats)
    last = _OVER_PLACES.get(node.target, 0)
    if node.target in _PADS and (arguments.get("mode", "constant") != "constant" or arguments["value"] in (0, None)):
        last = len(arguments["pad"]) // 2
    return place if last and place.axis < value.dim() - last else None


def _ranges(pair: Pair, sizes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """r₁ and r₂, from the matrices of absolute weights."""
    first, second = (sizes[name] for name in pair.weights)
    return first.amax(2).flatten(), second.amax(1).reshape(pair.channels, -1).amax(1)


def _scaled_rows(matrix: Tensor, scale: Tensor) -> Tensor:
    return matrix / scale.reshape(*matrix.shape[:2], 1)


def _scaled_columns(matrix: Tensor, scale: Tensor) -> Tensor:
    groups, _, cols = matrix.shape
    return matrix * scale.repeat_interleave(groups * cols // scale.numel()).reshape(groups, 1, cols)


def _scale_clamp(
    graph: Graph, node: fx.Node, place: _Place, scale: Tensor, name: str, *, to_relu: bool = False
) -> None:
    """Let a clamp have its limits divided by the channels' scales; or let it be a ReLU."""
    value, limits = node.meta["val"], clamp_limits(node)
    shape = [1] * value.dim()
    shape[place.axis] = -1
    divisor = scale.repeat_interleave(place.repeats).reshape(shape)

    def insert(target: object, source: fx.Node, limit: float | Tensor | None = None) -> fx.Node:
        arguments = [source]
        if limit is not None:
            arguments.append(graph.add_constant(name, (limit / divisor).to(value.dtype)))
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


def _weight(call: fx.Node) -> str:
    source = call.args[1]
    assert isinstance(source, fx.Node)
    return str(source.target)


def _linear_map(graph: Graph, call: fx.Node) -> LinearMap:
    layer = linear_map(graph, call)
    assert layer is not None
    return layer
