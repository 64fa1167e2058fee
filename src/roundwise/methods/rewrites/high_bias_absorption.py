"""High-bias absorption: what a channel is always above, the next layer's bias may hold for it.

Equalization divides channels with small weights by small numbers, and with them their biases: some activations become
large, and a grid shared by all of a tensor coarse. But a channel whose values x hardly ever come below c > 0 passes a
ReLU as it is, so that c can be taken away before and added behind:

    W₂ f(x) + b₂ = W₂ f(x − c) + (b₂ + W₂ c)        for x ≥ c, with f(x) = x for x ≥ 0

    c = max(0, β − n γ)                             n = 3: a normal x is below c for 0.13 % of its values

with the mean β and deviation γ that batch-norm gave the channel, or that samples show, where there are some. So b₁
becomes b₁ − c and b₂ becomes b₂ + W₂ c.

*Upper limits*, of ReLU6 and as equalization leaves them, go down by c too: min(x, u) − c = min(x − c, u − c). This is
exact; c is at most u.

What does change, and makes this rewrite one that is not exact: values below c, and the border of what is padded with
zeros. A zero there stood for 0, and now stands for c. `across_padding=False` leaves such pairs alone, which keeps
weights alone nearer to the float network, but may leave activations that no 8 bits can hold: channels with γ near 0 are
constants, which equalization may make very large.

*Where.* In pairs of layers as `graph/analysis/channels.py` finds them, with a ReLU of some kind between them (all that
is the identity from 0 up), and where the moments of the first layer's output are known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, fx

from roundwise.errors import RecipeError
from roundwise.graph.analysis.channels import Pair, Place, change_limits, find_pairs, weight_name
from roundwise.graph.analysis.layers import clamp_limits, linear_map
from roundwise.graph.graph import Graph, bind
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.settings import check_types
from roundwise.wording import number_of

aten = torch.ops.aten

_RELUS = frozenset({aten.relu.default, aten.leaky_relu.default, aten.prelu.default})


@final
@dataclass(frozen=True)
class HighBiasAbsorption(GraphRewrite):
    """Move what channels are always above into the next layer's bias; after equalization, before rounding.

    Args:
        deviations: n, 0 or more; the fewer, the more is absorbed and the more values are below it.
        across_padding: whether to absorb where zeros are put around the values, and so to be wrong at the border.
        moments: where means and deviations are from: "batch-norm", or "data", a batch of the calibration samples, which
            serves networks without batch-norm too.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, Section 4.1.
    """

    deviations: float = 3.0
    across_padding: bool = True
    moments: Literal["batch-norm", "data"] = "batch-norm"

    def __post_init__(self) -> None:
        check_types(self)
        if not self.deviations >= 0:
            raise RecipeError(f"{self}: deviations must be 0 or more, counted down from a channel's mean; 3 is usual.")

    @property
    def exact(self) -> bool:
        return False

    @property
    def measures_moments(self) -> bool:
        return self.moments == "data"

    def note(self, graph: Graph) -> str:
        if not graph.moments:
            return "no layer is followed by a batch-norm, so nothing is known of what channels are above"
        amounts = self._amounts(graph)
        if not any(_is_relu(node) for node in graph.operations.nodes):
            return "no ReLU stands between layers: nothing to absorb"
        if not amounts:
            return "no channel is always above 0 between two layers: nothing to absorb"
        channels = sum(int((amount > 0).sum()) for _, amount in amounts)
        padded = sum(pair.pads for pair, _ in amounts)
        border = f", {padded} of them with padding, whose borders change" if padded else ""
        return f"{number_of(channels, 'channel')} between {number_of(len(amounts), 'pair')} of layers{border}"

    def apply(self, graph: Graph) -> Graph:
        graph = graph.copy()
        for pair, amount in self._amounts(graph):
            _add_to_bias(graph, pair.first, -amount)
            _add_to_bias(graph, pair.second, _through(graph, pair.second, amount))
            name = weight_name(pair.first)
            for function, place in pair.functions:
                if _has_ceiling(function):
                    lowered = place.along(amount, function.meta["val"].dim()).neg().add
                    change_limits(graph, function, f"{name}_limit", lowered)
            graph.moments[name] = graph.moments[name].lowered(amount)
        graph.prune()
        return graph

    def _amounts(self, graph: Graph) -> list[tuple[Pair, Tensor]]:
        """The pairs between which something can be absorbed, and c of each, float64 `[channels]`."""
        found = []
        for pair in find_pairs(graph, lambda node: _is_relu(node) or _has_ceiling(node)):
            moments, second = graph.moments.get(weight_name(pair.first)), linear_map(graph, pair.second)
            if moments is None or second is None or (pair.pads and not self.across_padding):
                continue
            # A transposed convolution adds W c at some places and a part of it at others.
            if second.transposed or not any(_is_relu(function) for function, _ in pair.functions):
                continue
            amount = (moments.mean - self.deviations * moments.std).clamp(min=0)
            ceilings = [_ceiling(graph, pair, *function) for function in pair.functions if _has_ceiling(function[0])]
            for ceiling in ceilings:
                amount = torch.zeros_like(amount) if ceiling is None else torch.minimum(amount, ceiling.clamp(min=0))
            if bool((amount > 0).any()):
                found.append((pair, amount))
        return found


def _is_relu(node: fx.Node) -> bool:
    """Whether an operation is the identity from 0 up, but for an upper limit, and something else below."""
    limits = clamp_limits(node)
    return node.target in _RELUS or (limits is not None and limits[0] == 0 < limits[1])


def _has_ceiling(node: fx.Node) -> bool:
    """Whether an operation limits values from above, and from below no further up than at 0."""
    limits = clamp_limits(node)
    return node.target is aten.minimum.default or (
        limits is not None and limits[0] in (0, -math.inf) and limits[1] < math.inf
    )


def _ceiling(graph: Graph, pair: Pair, node: fx.Node, place: Place) -> Tensor | None:
    """The upper limit of each channel, float64 `[channels]`; None where it is not one for each channel."""
    limits, like = clamp_limits(node), graph.moments[weight_name(pair.first)].mean
    if limits is not None:
        return torch.full_like(like, limits[1])
    constant = graph.constant(node.args[1])
    return None if constant is None else place.channels(constant, pair.channels, node.meta["val"].dim())


def _through(graph: Graph, call: fx.Node, amount: Tensor) -> Tensor:
    """W c: what a constant in each channel adds to every output of a layer, away from borders."""
    layer = linear_map(graph, call)
    assert layer is not None
    groups, _, cols = layer.matrix_shape
    columns = amount.repeat_interleave(groups * cols // amount.numel()).reshape(groups, cols)
    matrix = layer.to_matrix(graph.constants[weight_name(call)].double())
    return torch.einsum("grc,gc->gr", matrix, columns).flatten()


def _add_to_bias(graph: Graph, call: fx.Node, values: Tensor) -> None:
    """Give a layer a bias of its own, with the values added to what it was."""
    bias, name = bind(call)["bias"], weight_name(call)
    dtype = graph.constants[name].dtype
    before = graph.constant(bias)
    if before is not None and set(bias.users) == {call}:
        graph.constants[str(bias.target)] = (before.double() + values).to(dtype)
        return
    new = graph.add_constant(
        f"{name.removesuffix('weight')}bias" if name.endswith("weight") else f"{name}_bias",
        (values if before is None else before.double() + values).to(dtype),
    )
    call.args = (*call.args[:2], new, *call.args[3:])
