"""Means and deviations of activations, without any data: batch-norm's statistics, carried along the graph.

A batch-norm gives each channel the mean β and, with the variance σ² of the training data, the standard deviation
|γ| √(σ²/(σ² + ε)). When it is folded into the layer before it, the layer's output has this mean and deviation, and the
graph records them (`Graph.moments`). `propagate` assumes that each channel is normally distributed and computes the
mean and deviation of what later operations give:

*Clamps.* For Y = clamp(X, l, u) with X ~ N(μ, σ²), a = (l − μ)/σ, b = (u − μ)/σ, the density φ and the distribution
function Φ of the standard normal,

    E[Y] = μ + σ m            m = a Φ(a) + b Φ(−b) + φ(a) − φ(b)
    E[(Y − μ)²] = σ² q        q = a² Φ(a) + b² Φ(−b) + Φ(b) − Φ(a) + a φ(a) − b φ(b)

*Derivation.* Z = (X − μ)/σ is a standard normal, and (Y − μ)/σ = clamp(Z, a, b) is a with probability Φ(a), b with
probability Φ(−b), and Z otherwise. Since φ' = −z φ, the integral of z φ over [a, b] is φ(a) − φ(b), and by parts that
of z² φ is Φ(b) − Φ(a) + a φ(a) − b φ(b). ∎ With l = 0 and u = ∞ it is the formula for ReLU in the paper,
γ φ(−β/γ) + β (1 − Φ(−β/γ)) (Section 4.2 and its appendix). Two clamps in a row are one clamp.

*Sums.* Means add, whatever the operands. Variances are added as if the operands were independent. That is wrong where a
branch returns to the value that it left. The sum is assumed to be normal again.

*Concatenations* along the channels put channels side by side; slices and `index_select` pick some.

*Pooling, resizing and padding.* An average keeps the mean. Its variance is smaller than that of the values that it
averages, by an unknown amount; it is left as it was, so ranges come out too wide rather than too narrow. The mean of a
maximum is larger than the mean of the values, by an unknown amount; it is left as it was, too small. Zeros around an
image are not counted.

Nothing is known of the network's input, of layers without batch-norm, and of the results of other functions.

References:
    Nagel et al., ICCV 2019, arXiv:1906.04721, Sections 4.1 and 4.2; the appendix on clipped normals.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, fx

from roundwise.graph.analysis.layers import channel_axis, find_layers, linear_map, weight_name
from roundwise.graph.analysis.pairs import Place, extreme_limits, place_after
from roundwise.graph.graph import ChannelMoments, Graph, bind
from roundwise.graph.matrix import LinearMap
from roundwise.graph.operators import EXTREMES, PADS, clamp_limits, padded_number

aten = torch.ops.aten

BATCH_NORM = aten.batch_norm.default

_FAR = 40.0
"""In standard deviations from the mean: further out, φ is 0 and Φ is 0 or 1 in float64."""


def batchnorm_moments(graph: Graph, norm: fx.Node) -> ChannelMoments | None:
    """The moments of a batch-norm's output.

    Returns:
        None where the batch-norm takes its statistics from the batch, or where one of its tensors is not a constant.
    """
    arguments = bind(norm)
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, variance = (graph.constant(arguments[name]) for name in names)
    given = all(graph.constant(arguments[name]) is not None for name in names if arguments[name] is not None)
    if arguments["training"] or mean is None or variance is None or not given:
        return None
    std = (variance.double() / (variance.double() + arguments["eps"])).sqrt()
    std = std if gamma is None else std * gamma.double().abs()
    return ChannelMoments(torch.zeros_like(std) if beta is None else beta.double(), std)


@final
@dataclass(frozen=True, eq=False)
class Spread:
    """How the values of each channel are distributed: a normal distribution, clamped. All float64 `[channels]`.

    Attributes:
        mean, std: of the clamped values.
        center, deviation: mean and standard deviation before clamping; equal to `mean` and `std` without a clamp.
        low, high: the limits of the clamp; infinite without one.
    """

    mean: Tensor
    std: Tensor
    center: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, moments: ChannelMoments) -> Spread:
        """A normal distribution, without a clamp."""
        mean, std = moments.mean, moments.std
        return cls(mean, std, mean, std, torch.full_like(mean, -math.inf), torch.full_like(mean, math.inf))

    def clamped(self, low: Tensor | float, high: Tensor | float) -> Spread:
        """The distribution of clamp(x, low, high)."""
        lows, highs = (
            end.clamp(torch.as_tensor(low).to(end), torch.as_tensor(high).to(end)) for end in (self.low, self.high)
        )
        if torch.equal(lows, self.low) and torch.equal(highs, self.high):
            return self
        mean, std = clipped_normal(self.center, self.deviation, lows, highs)
        return Spread(mean, std, self.center, self.deviation, lows, highs)

    def plus(self, other: Spread) -> Spread:
        """The distribution of a sum, taken for normal, of values taken for independent."""
        mean, std = self.mean + other.mean, (self.std.square() + other.std.square()).sqrt()
        return Spread(mean, std, mean, std, self.low + other.low, self.high + other.high)

    def at(self, index: Index) -> Spread:
        """The distribution of chosen channels; −1 chooses a channel that is always 0."""
        fields = (getattr(self, name) for name in _FIELDS)
        if isinstance(index, slice):
            return Spread(*(values[index] for values in fields))
        return Spread(*(torch.cat([values, values.new_zeros(1)])[index] for values in fields))

    def ends(self, deviations: float) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value of each channel within some deviations of its center."""
        reach = deviations * self.deviation
        low, high = (
            torch.minimum(torch.maximum(end, self.low), self.high) for end in (self.center - reach, self.center + reach)
        )
        return low, high

    def limits(self, deviations: float, share: float = 1.0) -> tuple[float, float]:
        """An interval that holds, for a share of the channels, all values within some deviations of the center.

        Args:
            deviations: counted from the center to both sides.
            share: of the channels, above 0 and up to 1.
        """
        low, high = self.ends(deviations)
        return (
            float(low.quantile(1 - share, interpolation="lower")),
            float(high.quantile(share, interpolation="higher")),
        )


Index = Tensor | slice
"""Which channels, in which order."""

_FIELDS = ("mean", "std", "center", "deviation", "low", "high")


def clipped_normal(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of clamp(X, low, high) with X normal; all float64, of one shape, low ≤ high.

    Example:
        >>> mean, std = clipped_normal(*(torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0, 0.0, math.inf)))
        >>> round(float(mean), 6), round(float(std**2), 6)  # 1/√(2π), and 1/2 − 1/(2π)
        (0.398942, 0.340845)
    """
    certain = std == 0
    sigma = torch.where(certain, 1.0, std)
    # A limit beyond `_FAR` deviations clamps nothing, and infinity would give NaN below.
    a, b = ((low - mean) / sigma).clamp(min=-_FAR), ((high - mean) / sigma).clamp(max=_FAR)
    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    at_a, at_b = ((-end.square() / 2).exp() / math.sqrt(2 * math.pi) for end in (a, b))
    first = a * below + b * above + at_a - at_b
    second = a.square() * below + b.square() * above + (1 - below - above) + a * at_a - b * at_b
    clipped = torch.minimum(torch.maximum(mean, low), high)
    expected = torch.where(certain, clipped, mean + sigma * first)
    return expected, torch.where(certain, 0.0, sigma * (second - first.square()).clamp(min=0).sqrt())


class Known(NamedTuple):
    """What is known of a value, and where its channels are."""

    spread: Spread
    place: Place


def propagate(graph: Graph) -> dict[fx.Node, Known]:
    """The distribution of each value in a graph, as far as batch-norm's statistics tell it; others are left out."""
    known: dict[fx.Node, Known] = {}
    of_layers = graph.moments
    for node in graph.operations.nodes:
        if node.op == "call_function" and (found := _after(graph, node, of_layers, known)) is not None:
            known[node] = found
    return known


def expected_columns(layer: LinearMap, call: fx.Node, known: Mapping[fx.Node, Known]) -> Float[Tensor, "groups cols"]:
    """E[x] of each column of a layer's matrix.

    Raises:
        LookupError: nothing is known of what the layer reads; says why.
    """
    source = call.args[0]
    assert isinstance(source, fx.Node)
    if source not in known:
        raise LookupError("batch-norm tells nothing of what it reads")
    spread, place = known[source]
    if layer.transposed or place.axis != channel_axis(source, layer):
        raise LookupError("which channel goes into which product depends on the place")
    return layer.columns_of_channels(spread.mean)


@torch.no_grad()
def with_measured_moments(
    graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, known: Collection[str] = ()
) -> Graph:
    """A copy of the graph, with the moments of its layers' outputs measured over all samples and positions.

    A weight with several calls gets none: each call has a distribution of its own. Neither do layers with an output
    that has values that are NaN or infinite, or no values.

    Args:
        graph: in normal form.
        args, kwargs: the samples, as the model is called.
        known: weights of layers whose moments are not measured.
    """
    measured: dict[str, ChannelMoments] = {}
    layers = {
        layer.node.name: layer for layer in find_layers(graph) if len(layer.calls) == 1 and layer.weight not in known
    }

    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if (layer := layers.get(n.name)) is not None:
                channels = value.double().movedim(channel_axis(layer.node, layer.map), 0)
                rows = channels.reshape(len(channels), -1)
                if rows.numel() and bool(rows.isfinite().all()):
                    measured[layer.weight] = ChannelMoments(rows.mean(1), rows.std(1, correction=0))
            return value

    module = graph.module()
    Watching(module).run(*pytree.tree_leaves((args, kwargs)), enable_io_processing=False)
    result = graph.copy()
    for weight, moments in measured.items():
        result.record_moments(weight, moments)
    return result


def _after(
    graph: Graph, node: fx.Node, of_layers: Mapping[str, ChannelMoments], known: Mapping[fx.Node, Known]
) -> Known | None:
    """The distribution of what an operation gives; None if it is not known."""
    layer = linear_map(graph, node)
    if layer is not None:
        moments = of_layers.get(weight_name(node))
        return None if moments is None else Known(Spread.normal(moments), Place(channel_axis(node, layer)))
    if node.target is BATCH_NORM:
        moments = batchnorm_moments(graph, node)
        return None if moments is None else Known(Spread.normal(moments), Place(1))
    if node.target is aten.cat.default:
        return _joined(node, known)
    if node.target is aten.add.Tensor:
        left, right = (known.get(operand) if isinstance(operand, fx.Node) else None for operand in node.args[:2])
        alike = left is not None and right is not None and left.place == right.place and _shapes_agree(node)
        if not alike or bind(node)["alpha"] != 1:
            return None
        assert left is not None
        assert right is not None
        return Known(left.spread.plus(right.spread), left.place)
    source = node.args[0] if node.args else None
    before = known.get(source) if isinstance(source, fx.Node) else None
    if before is None or not isinstance(node.meta["val"], Tensor):
        return None
    if before.place.repeats == 1 and (chosen := _chosen(graph, node, before.place.axis)) is not None:
        return Known(before.spread.at(chosen), before.place)
    if node.target is aten.slice.Tensor:
        return None if bind(node)["dim"] % node.meta["val"].dim() == before.place.axis else before
    limits = clamp_limits(node) or extreme_limits(graph, node, before.place)
    if limits is not None:
        return Known(before.spread.clamped(*limits), before.place)
    if node.target in EXTREMES:
        return None
    place = place_after(node, before.place)
    return None if place is None else Known(before.spread, place)


def _chosen(graph: Graph, node: fx.Node, axis: int) -> Index | None:
    """Which channels a selection or a padding along them gives; None for other operations."""
    arguments, dims = bind(node), node.meta["val"].dim()
    if node.target is aten.index_select.default and arguments["dim"] % dims == axis:
        return graph.constant(arguments["index"])
    if node.target is aten.slice.Tensor and arguments["dim"] % dims == axis:
        ends = arguments["start"], arguments["end"], arguments["step"]
        return slice(*ends) if all(end is None or isinstance(end, int) for end in ends) else None
    if node.target in PADS and padded_number(node) == 0:
        # Two numbers for each dimension, the last dimension first.
        pad = arguments["pad"][2 * (dims - 1 - axis) :]
        if not pad or not all(isinstance(number, int) and number >= 0 for number in pad[:2]):
            return None
        index = torch.arange(-pad[0], node.meta["val"].shape[axis] - pad[0])
        return index.where((index >= 0) & (index < len(index) - pad[0] - pad[1]), -1)
    return None


def _joined(node: fx.Node, known: Mapping[fx.Node, Known]) -> Known | None:
    """After a concatenation along the channels."""
    operands = node.args[0]
    assert isinstance(operands, list | tuple)
    found = [known[operand] for operand in operands if isinstance(operand, fx.Node) and operand in known]
    axis = bind(node)["dim"] % node.meta["val"].dim()
    if len(found) != len(operands) or any(one.place != Place(axis) for one in found):
        return None
    joined = (torch.cat([getattr(one.spread, name) for one in found]) for name in _FIELDS)
    return Known(Spread(*joined), Place(axis))


def _shapes_agree(node: fx.Node) -> bool:
    """Whether both operands have the shape of the result, so that nothing is broadcast."""
    values = [operand.meta["val"] for operand in node.args[:2] if isinstance(operand, fx.Node)]
    return all(str(list(value.shape)) == str(list(node.meta["val"].shape)) for value in values)
