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

*Where pairs are* says `graph/analysis/channels.py`.

A channel whose range, in one of the two layers, is 0 or below 2⁻⁸⁰ of the layer's largest keeps s = 1, so that no s is
beyond what float32 holds. Channels that are merely negligible are scaled as all others: trained networks have some with
weights of 10⁻¹² in one layer and of 50 in the next, whose grid they would spoil for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, fx

from roundwise.errors import RecipeError
from roundwise.graph.analysis.channels import Pair, change_limits, find_pairs, weight_name
from roundwise.graph.analysis.layers import clamp_limits, linear_map
from roundwise.graph.graph import Graph, bind
from roundwise.graph.matrix import LinearMap
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.settings import check_types
from roundwise.wording import number_of

aten = torch.ops.aten

Clamps = Literal["clip-per-channel", "keep", "relu"]

DEAD = 2.0**-80
"""Channels with a smaller share of their layer's range are left alone."""

_EQUIVARIANT = frozenset({aten.relu.default, aten.leaky_relu.default, aten.prelu.default})


@final
@dataclass(frozen=True)
class CrossLayerEqualization(GraphRewrite):
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
        layers = {weight_name(node): _linear_map(graph, node) for pair in found for node in (pair.first, pair.second)}
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
            for function, place in pair.functions:
                if not _is_equivariant(function):
                    divisor = place.along(scale, function.meta["val"].dim())
                    change_limits(
                        graph, function, f"{first}_limit", divisor.reciprocal().mul, to_relu=self.relu6 == "relu"
                    )
            if first in graph.moments:
                graph.moments[first] = graph.moments[first].scaled(1 / scale)
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
    return find_pairs(graph, lambda node: _is_equivariant(node) or _can_follow(node, relu6))


def _is_equivariant(node: fx.Node) -> bool:
    return node.target in _EQUIVARIANT or clamp_limits(node) in ((0, math.inf), (-math.inf, math.inf))


def _can_follow(clamp: fx.Node, relu6: Clamps) -> bool:
    """Whether a clamp may be scaled, or replaced."""
    limits = clamp_limits(clamp)
    return relu6 == "clip-per-channel" or (relu6 == "relu" and limits is not None and limits[0] == 0)


def _ranges(pair: Pair, sizes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """r₁ and r₂, from the matrices of absolute weights."""
    first, second = (sizes[name] for name in pair.weights)
    return first.amax(2).flatten(), second.amax(1).reshape(pair.channels, -1).amax(1)


def _scaled_rows(matrix: Tensor, scale: Tensor) -> Tensor:
    return matrix / scale.reshape(*matrix.shape[:2], 1)


def _scaled_columns(matrix: Tensor, scale: Tensor) -> Tensor:
    groups, _, cols = matrix.shape
    return matrix * scale.repeat_interleave(groups * cols // scale.numel()).reshape(groups, 1, cols)


def _linear_map(graph: Graph, call: fx.Node) -> LinearMap:
    layer = linear_map(graph, call)
    assert layer is not None
    return layer
