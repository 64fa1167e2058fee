"""Cross-layer equalization (CLE): scale channels up in one layer and down in the next, until ranges are alike.

Between two layers stands a function f with f(s x) = s f(x) for s > 0, element by element: nothing, ReLU, leaky ReLU and
PReLU, whatever its slopes. With any S = diag(s), s > 0,

    W₂ f(W₁ x + b₁) + b₂ = (W₂ S) f(S⁻¹ W₁ x + S⁻¹ b₁) + b₂

What changes is how well each channel uses a grid that all share. Let r₁ᵢ be the largest |weight| of output channel i in
the first layer, r₂ᵢ that of input channel i in the second, and R₁, R₂ the largest of all channels. Channel i uses the
share rᵢ/R of its grid. The best s makes Σᵢ (r₁ᵢ/R₁)(r₂ᵢ/R₂) as large as possible, and is

    sᵢ = √(r₁ᵢ r₂ᵢ) / r₂ᵢ                                                                            (Eq. 11)

*Proof.* With s the ranges are r₁ᵢ/sᵢ and r₂ᵢ sᵢ. Their product is r₁ᵢ r₂ᵢ, whatever s, and so the sum is Σᵢ r₁ᵢ r₂ᵢ
divided by R₁(s) R₂(s). Since R₁(s) R₂(s) ≥ (r₁ᵢ/sᵢ)(r₂ᵢ sᵢ) = r₁ᵢ r₂ᵢ for each i, it is at least maxᵢ r₁ᵢ r₂ᵢ. Eq. 11
makes both ranges √(r₁ᵢ r₂ᵢ), so R₁(s) R₂(s) is that bound. ∎

The algorithm:

1. Find all pairs of layers (`graph/analysis/pairs.py` says which).
2. Sweep over the pairs: compute s from Eq. 11 and scale the ranges of both layers.
3. Repeat step 2 until no s differs from 1 by more than the tolerance, or for `max_iterations` sweeps.
4. Divide the rows and the bias of each first layer by the product of its s, and multiply the columns of the second.

*Chains.* More than one sweep is needed because a layer may be second in one pair and first in the next, as depthwise
convolutions are. The changes shrink: in the logarithms of all s, a sweep does not expand distances in the maximum norm
(a maximum of shifted numbers moves no further than the numbers), so no sweep changes more than the one before.

*Clamps.* ReLU6 and other clamps are not equivariant, but clamp(x, l, u)/s = clamp(x/s, l/s, u/s): with limits for each
channel the rewrite is exact. This is the default. The operation becomes a ReLU (or a maximum) and a minimum with a
constant. Methods that look at the function after a layer see the ReLU and not the minimum after it; where the lower
limit is not 0, they see no function. Where activations are quantized, the quantizer is put after the minimum. The paper
replaces ReLU6 by ReLU, which changes the network; `relu6="relu"` does that.

*Dead channels.* A channel whose range, in one of the two layers, is below 2⁻⁸⁰ of the layer's largest keeps s = 1, so
that every s fits into float32. Channels that are only small are scaled like all others: trained networks have some with
weights of 10⁻¹² in one layer and of 50 in the next, which would widen the next layer's grid for all channels.

*Nearly constant channels.* Where γ of a batch-norm is near 0, a channel may have weights of 10⁻⁶ and a bias of 1, and
Eq. 11 divides the bias by a tiny s. The result would set the range of the whole tensor between the two layers. Its grid
would then be too coarse for all other channels: MobileNetV2 with 8-bit weights and activations, per tensor, classified
0.15 % of the images correctly. So s has a lower bound, which follows from the values of each channel:

    aᵢ   the largest absolute value within 6 deviations of the channel's mean, after the functions between the layers
    dᵢ   6 deviations of these values: the part of aᵢ that is not constant
    A  = 2 · max(the largest dᵢ/sᵢ of 99.5 % of the channels, the smallest aᵢ/sᵢ > 0)             with s from Eq. 11
    sᵢ ≥ min(aᵢ/A, √(aᵢ/A · R₂/r₂ᵢ))                                                    R₂ = max r₂ᵢ sᵢ

The first term keeps the channel below A. If that makes its weights in the second layer larger than all others, the
second term is the smaller one: it divides the excess evenly between weights and activations. If no s is below its
bound, nothing changes. Means and deviations come from batch-norms, or from samples where there are none; without either
there is no bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor, fx

from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import weight_name
from roundwise.graph.analysis.moments import Spread
from roundwise.graph.analysis.pairs import Pair, extreme_limits, find_pairs
from roundwise.graph.edit import LayerEdit, change_limits
from roundwise.graph.graph import ChannelMoments, Graph
from roundwise.graph.operators import RECTIFIERS, clamp_limits
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.settings import check_types
from roundwise.wording import number_of

Clamps = Literal["clip-per-channel", "keep", "relu"]

DEAD = 2.0**-80
"""A channel whose range is a smaller share of its layer's range than this is not scaled."""

DEVIATIONS = 6.0
"""Values of a channel lie within 6 deviations of its mean. A larger number allows for more values far from the mean."""

COVERED = 0.995
"""The largest dᵢ/sᵢ is that of 99.5 % of the channels; of 200 channels or fewer, of all. A smaller share ignores more
channels with large deviations."""

TIMES = 2.0
"""A constant may be 2 times as large as the varying part of other channels. A larger number makes the weights more
equal and the grid of the activations coarser."""


@final
@dataclass(frozen=True)
class CrossLayerEqualization(GraphRewrite):
    """Give the channels between two layers equal ranges in both.

    Args:
        relu6: what to do with ReLU6 and other clamps between two layers: "clip-per-channel" scales their limits, which
            is exact; "keep" does not equalize across them; "relu" replaces clamps with lower limit 0 by ReLU where it
            equalizes, as the paper does, which changes what the network computes (the report says by how much).
        tolerance: sweeps end when no scale changes by more than this share of itself, above 0; larger ends earlier.
        max_iterations: the most sweeps over all pairs, at least 1; the network computes the same after any number.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, Section 4.1.
    """

    relu6: Clamps = "clip-per-channel"
    tolerance: float = 0.01
    max_iterations: int = 200
    measures_moments: ClassVar[Literal["where-unknown"]] = "where-unknown"

    def __post_init__(self) -> None:
        check_types(self)
        if not self.tolerance > 0:
            raise RecipeError(f"{self}: the tolerance must be above 0. It is a share of a scale; 0.01 is usual.")
        if self.max_iterations < 1:
            raise RecipeError(f"{self}: max_iterations counts sweeps over all pairs; it must be at least 1.")

    @property
    def exact(self) -> bool:
        return self.relu6 != "relu"

    def note(self, graph: Graph) -> str:
        count = len(pairs(graph, self.relu6))
        if not count:
            return "no pair of layers to equalize"
        return f"{number_of(count, 'pair')} of layers with channels in common"

    def apply(self, graph: Graph) -> Graph:
        graph = graph.copy()
        found = pairs(graph, self.relu6)
        layers = {weight_name(node): LayerEdit(graph, node) for pair in found for node in (pair.first, pair.second)}
        for pair, scale in zip(found, self._bounded_scales(graph, found, layers), strict=True):
            if bool((scale == 1).all()):
                continue
            first, second = pair.weights
            layers[first].divide_outputs(scale)
            layers[second].scale_inputs(scale)
            for function, place in pair.functions:
                if not _is_equivariant(function):
                    divisor = place.along(scale, function.meta["val"].dim())
                    change_limits(
                        graph, function, f"{first}_limit", divisor.reciprocal().mul, to_relu=self.relu6 == "relu"
                    )
        for layer in layers.values():
            layer.store()
        graph.prune()
        return graph

    def _bounded_scales(self, graph: Graph, found: Sequence[Pair], layers: Mapping[str, LayerEdit]) -> list[Tensor]:
        """s of each pair, float64 `[channels]`, with a lower bound for channels that are nearly constant."""
        scales = self._scales(found, layers, [torch.zeros(()).double()] * len(found))
        moments, sizes = graph.moments, {name: layer.matrix.abs() for name, layer in layers.items()}
        lowest = []
        for pair, scale in zip(found, scales, strict=True):
            known, (_, r2) = moments.get(pair.weights[0]), _ranges(pair, sizes)
            bound = torch.zeros_like(scale) if known is None else _bound(self._spread(graph, pair, known), scale, r2)
            lowest.append(bound)
        if all(bool((scale >= bound).all()) for scale, bound in zip(scales, lowest, strict=True)):
            return scales
        return self._scales(found, layers, lowest)

    def _spread(self, graph: Graph, pair: Pair, moments: ChannelMoments) -> Spread:
        """The distribution of the values between two layers, with clamps replaced where `apply` replaces them."""
        spread = Spread.normal(moments)
        for function, place in pair.functions:
            low, high = clamp_limits(function) or extreme_limits(graph, function, place) or (-math.inf, math.inf)
            replaced = self.relu6 == "relu" and not _is_equivariant(function)
            spread = spread.clamped(low, math.inf if replaced else high)
        return spread

    def _scales(self, found: Sequence[Pair], layers: Mapping[str, LayerEdit], lowest: Sequence[Tensor]) -> list[Tensor]:
        """s of each pair, float64 `[channels]`; all 1 if the ranges are equal already, within the tolerance.

        Args:
            found: the pairs.
            layers: the layers of all pairs, by the names of their weights.
            lowest: the smallest s that each pair may have, `[channels]` or a single number; 0 for any.
        """
        sizes = {name: layer.matrix.abs() for name, layer in layers.items()}
        alive = [
            torch.stack([r > DEAD * r.max() for r in _ranges(pair, sizes)]).all(0) for pair in found
        ]  # decided once, so that no channel is scaled in one sweep and not in the next
        ones = [torch.ones_like(mask, dtype=torch.float64) for mask in alive]
        totals = ones
        for sweep in range(self.max_iterations):
            change, before = 0.0, totals
            totals = []
            for pair, mask, total, bound in zip(found, alive, before, lowest, strict=True):
                r1, r2 = _ranges(pair, sizes)
                scale = torch.maximum(torch.where(mask, (r1 / r2).sqrt(), 1.0), bound / total)
                first, second = pair.weights
                sizes[first] = sizes[first] / scale.reshape(*sizes[first].shape[:2], 1)
                sizes[second] = sizes[second] * layers[second].map.columns_of_channels(scale).unsqueeze(1)
                totals.append(total * scale)
                change = max(change, float(scale.log().abs().max()))
            if change <= self.tolerance:
                return ones if sweep == 0 else totals
        return totals


def pairs(graph: Graph, relu6: Clamps = "clip-per-channel") -> list[Pair]:
    """The pairs of layers in a graph that can be equalized, in the order of the first."""
    return find_pairs(graph, lambda node: _is_equivariant(node) or _can_follow(node, relu6))


def _is_equivariant(node: fx.Node) -> bool:
    return node.target in RECTIFIERS or clamp_limits(node) in ((0, math.inf), (-math.inf, math.inf))


def _can_follow(clamp: fx.Node, relu6: Clamps) -> bool:
    """Whether a clamp may be scaled, or replaced."""
    limits = clamp_limits(clamp)
    return relu6 == "clip-per-channel" or (relu6 == "relu" and limits is not None and limits[0] == 0)


def _bound(spread: Spread, scale: Tensor, r2: Tensor) -> Tensor:
    """The smallest s of each channel, `[channels]`; 0 where all channels are constant."""
    low, high = spread.ends(DEVIATIONS)
    reach = torch.maximum(low.abs(), high.abs())
    scaled = (reach / scale)[reach > 0]
    if not scaled.numel():
        return torch.zeros_like(scale)
    moving = (DEVIATIONS * spread.std / scale).quantile(COVERED, interpolation="higher")
    excess = reach / (TIMES * torch.maximum(moving, scaled.min()))
    widest = (r2 * scale).max()
    return torch.where(excess * r2 > widest, (excess * widest / r2).sqrt(), excess)


def _ranges(pair: Pair, sizes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """r₁ and r₂, from the matrices of absolute weights."""
    first, second = (sizes[name] for name in pair.weights)
    return first.amax(2).flatten(), second.amax(1).reshape(pair.channels, -1).amax(1)
