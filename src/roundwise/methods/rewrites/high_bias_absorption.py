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
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, fx

from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import linear_map, weight_name
from roundwise.graph.analysis.pairs import Pair, Place, find_pairs
from roundwise.graph.edit import LayerEdit, change_limits
from roundwise.graph.graph import Graph
from roundwise.graph.operators import RECTIFIERS, clamp_limits
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.settings import check_types
from roundwise.wording import number_of

aten = torch.ops.aten


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
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_types(self)
        if not self.deviations >= 0:
            raise RecipeError(f"{self}: deviations are counted downwards from a channel's mean, 0 or more; 3 is usual.")

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
            first, second = LayerEdit(graph, pair.first), LayerEdit(graph, pair.second)
            first.shift_outputs(-amount)
            second.absorb(second.response(amount))
            first.store()
            second.store()
            for function, place in pair.functions:
                if _has_ceiling(function):
                    lowered = place.along(amount, function.meta["val"].dim()).neg().add
                    change_limits(graph, function, f"{weight_name(pair.first)}_limit", lowered)
        graph.prune()
        return graph

    def _amounts(self, graph: Graph) -> list[tuple[Pair, Tensor]]:
        """The pairs between which something can be absorbed, and c of each, float64 `[channels]`."""
        found, known = [], graph.moments
        for pair in find_pairs(graph, lambda node: _is_relu(node) or _has_ceiling(node)):
            moments, second = known.get(weight_name(pair.first)), linear_map(graph, pair.second)
            if moments is None or second is None or (pair.pads and not self.across_padding):
                continue
            # A transposed convolution adds W c at some places and a part of it at others.
            if second.transposed or not any(_is_relu(function) for function, _ in pair.functions):
                continue
            amount = (moments.mean - self.deviations * moments.std).clamp(min=0)
            for ceiling in (_ceiling(graph, amount, *it) for it in pair.functions if _has_ceiling(it[0])):
                amount = torch.zeros_like(amount) if ceiling is None else torch.minimum(amount, ceiling.clamp(min=0))
            if bool((amount > 0).any()):
                found.append((pair, amount))
        return found


def _is_relu(node: fx.Node) -> bool:
    """Whether an operation is the identity from 0 up, but for an upper limit, and something else below."""
    limits = clamp_limits(node)
    return node.target in RECTIFIERS or (limits is not None and limits[0] == 0 < limits[1])


def _has_ceiling(node: fx.Node) -> bool:
    """Whether an operation limits values from above, and from below no further up than at 0."""
    limits = clamp_limits(node)
    return node.target is aten.minimum.default or (
        limits is not None and limits[0] in (0, -math.inf) and limits[1] < math.inf
    )


def _ceiling(graph: Graph, like: Tensor, node: fx.Node, place: Place) -> Tensor | None:
    """The upper limits of a clamp, float64 `[channels]` as `like`; None where they are not one for each channel."""
    limits = clamp_limits(node)
    if limits is not None:
        return torch.full_like(like, limits[1])
    constant = graph.constant(node.args[1])
    return None if constant is None else place.channels(constant, like.numel(), node.meta["val"].dim())
