"""High-bias absorption: move the part of a channel that is nearly always there into the next layer's bias.

Equalization divides channels with small weights by small numbers, and their biases too. Some activations then become
large, and a grid that all channels of a tensor share becomes coarse. But if a channel's values x are nearly always
above some c > 0, they pass a ReLU unchanged, and c can be subtracted before it and added after it:

    W₂ f(x) + b₂ = W₂ f(x − c) + (b₂ + W₂ c)        for x ≥ c, with f(x) = x for x ≥ 0

    c = max(0, β − n γ)                             n = 3: a normal x is below c for 0.13 % of its values

with the mean β and deviation γ of the channel, from batch-norm or measured on samples. So b₁ becomes b₁ − c and b₂
becomes b₂ + W₂ c.

*Upper limits* of ReLU6, and those that equalization leaves, are lowered by c too: min(x, u) − c = min(x − c, u − c).
This is exact; c is at most u.

*What changes.* The rewrite is not exact. Values below c change, and so do borders that are padded with zeros: a zero
there stood for 0, and now stands for c. `across_padding=False` leaves pairs with padding alone. With quantized weights
alone, that keeps the network nearer to the float network. With quantized activations it may leave values too large for
8 bits: a channel with γ near 0 is a constant, which equalization may make very large.

*Where.* In pairs of layers (`graph/analysis/pairs.py`) with a ReLU of some kind between them, that is, with a function
that is the identity from 0 up, and where the moments of the first layer's output are known.
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
    """Move the part of channels that is nearly always there into the next layer's bias; after equalization.

    Args:
        deviations: n, 0 or more; a smaller n absorbs more, and changes more values.
        across_padding: whether to absorb where a padding puts zeros around the values, which changes the borders.
        moments: where means and deviations come from: "batch-norm", or "data", which measures them on a batch of the
            calibration samples, also in networks without batch-norm.

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
            raise RecipeError(f"{self}: deviations must be 0 or more, counted down from a channel's mean; 3 is usual.")

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
            # A transposed convolution adds W c at some output positions, and a part of it at others.
            if second.transposed or not any(_is_relu(function) for function, _ in pair.functions):
                continue
            amount = (moments.mean - self.deviations * moments.std).clamp(min=0)
            for ceiling in (_ceiling(graph, amount, *it) for it in pair.functions if _has_ceiling(it[0])):
                amount = torch.zeros_like(amount) if ceiling is None else torch.minimum(amount, ceiling.clamp(min=0))
            if bool((amount > 0).any()):
                found.append((pair, amount))
        return found


def _is_relu(node: fx.Node) -> bool:
    """Whether an operation is the identity from 0 up to an upper limit, if it has one, and another function below 0."""
    limits = clamp_limits(node)
    return node.target in RECTIFIERS or (limits is not None and limits[0] == 0 < limits[1])


def _has_ceiling(node: fx.Node) -> bool:
    """Whether an operation has an upper limit, and either no lower limit or the lower limit 0."""
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
