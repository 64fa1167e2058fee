"""Outlier channel splitting (OCS): split the input channels with the largest weights into two with half the weight.

    w x = (w/2) x + (w/2) x

The network computes the same, but its largest weights are half as large, and so is the step of a grid that covers them.
For each layer, ⌈ratio · C⌉ times, with C input channels:

1. Find the channel with the largest weight; it may be a part of a channel that was split before.
2. Replace it by two parts, each with half of its weights.

In the graph the layer reads its input through an `index_select` that repeats channels. Where activations are quantized,
it repeats their codes.

*Unequal halves.* Equal halves round to equal codes. Then a rounding error counts twice, and the sum of both is no
nearer to w than on a grid of twice the step. So the paper makes the halves differ by half a step s, which is Hermite's
identity:

    w = (w − s/2)/2 + (w + s/2)/2,          Q((w − s/2)/2) + Q((w + s/2)/2) = Q(w)

for rounding Q to nearest. This needs s, and so the grid. With `bits`, s is the step of the symmetric grid for the whole
tensor that covers the weights after splitting: the grid that `Weights(bits, PerTensor(), ranges=MinMax())` chooses. On
another grid the identity does not hold in general. Methods that choose the codes of both parts together, such as
AdaRound, do not need it.

*Differences from the paper.* The paper leaves the first layer in float; here an override of the recipe does that, and
the layer is split all the same. Grouped layers are left alone, since all groups must have equally many channels. So are
weights that other operations read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.edit import select_inputs
from roundwise.graph.graph import Graph
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.settings import check_types
from roundwise.numerics.grid import Codebook, affine_grid

ROUNDS = 12
"""How often channels are split again with the step of the split before; the step's error is divided by at least 4."""


@final
@dataclass(frozen=True)
class OutlierChannelSplitting(GraphRewrite):
    """Split the input channels that hold the largest weights into two of half the size.

    Args:
        ratio: channels to add to each layer, as a share of those it has, above 0 and up to 1; rounded up, so at least
            one. The paper has 0.01 to 0.05.
        bits: of the per-tensor min-max grid on which the two parts differ by half a step; None makes equal halves.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Zhao et al., ICML 2019, arXiv:1901.09504, Section 3.
    """

    ratio: float = 0.02
    bits: int | None = None
    exact: ClassVar[bool] = True
    measures_moments: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.ratio <= 1:
            raise RecipeError(f"{self}: ratio is a share of the channels; it must be above 0 and at most 1.")
        if self.bits is not None:
            Codebook(self.bits)  # raises

    def note(self, graph: Graph) -> str:
        return ""

    def apply(self, graph: Graph) -> Graph:
        graph = graph.copy()
        for layer in find_layers(graph):
            (source,) = [node for node in layer.node.all_input_nodes if str(node.target) == layer.weight]
            alone = set(source.users) == set(layer.calls)
            if layer.map.groups == 1 and alone and graph.constants[layer.weight].any():
                self._split(graph, layer)
        return graph

    def _split(self, graph: Graph, layer: Layer) -> None:
        weight, axis = graph.constants[layer.weight], 0 if layer.map.transposed else 1
        channels = weight.movedim(axis, 0)
        count = math.ceil(self.ratio * channels.shape[0])
        parts, index = split(channels, count)
        if self.bits is not None:
            for _ in range(ROUNDS):
                parts, index = split(channels, count, _step(parts, Codebook(self.bits)))
        select_inputs(graph, layer, index, parts.movedim(0, axis).contiguous())


def split(channels: Tensor, count: int, step: float = 0.0) -> tuple[Tensor, Tensor]:
    """Split the channel with the largest weight, `count` times.

    Args:
        channels: the weights of each channel, `[channels, …]`.
        count: how many channels are added.
        step: the parts differ by half of it.

    Returns:
        The parts `[channels + count, …]`, and the channel that each is a part of, int64.
    """
    channel_count = channels.shape[0]
    parts = torch.cat([channels, channels.new_zeros(count, *channels.shape[1:])])
    index = torch.arange(channel_count + count, device=channels.device)
    largest = channels.flatten(1).abs().amax(1).tolist()
    for new in range(channel_count, channel_count + count):
        old = max(range(new), key=largest.__getitem__)
        whole = parts[old].clone()
        parts[old] = (whole - step / 2) / 2
        parts[new] = whole - parts[old]
        index[new] = index[old]
        largest[old] = float(parts[old].abs().max())
        largest.append(float(parts[new].abs().max()))
    return parts, index


def _step(parts: Tensor, codebook: Codebook) -> float:
    """The step of the grid that covers all parts."""
    low, high = (end.reshape(1, 1, 1) for end in torch.aminmax(parts))
    return float(affine_grid(low, high, codebook).scale)
