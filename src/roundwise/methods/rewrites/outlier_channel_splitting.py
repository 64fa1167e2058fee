"""Outlier channel splitting (OCS): halve the input channels with the largest weights, and feed each half alike.

    w x = (w/2) x + (w/2) x

The network computes what it did, but its largest weights are half as large, and so is the step of a grid that spans
them. ⌈ratio · C⌉ times, with C a layer's input channels, the one with the largest weight is split, which may be a part
of an earlier split. In the graph the layer reads its input through an `index_select` that repeats channels; where
activations are quantized it takes their codes as they are.

*Equal halves* round alike: an error in one comes twice, and the codes of both, rounded to nearest, lie no nearer to w
than on a grid of twice the step. So the source lays the halves half a step s apart, which is Hermite's identity:

    w = (w − s/2)/2 + (w + s/2)/2,          Q((w − s/2)/2) + Q((w + s/2)/2) = Q(w)

for rounding to nearest. It must know s, and so the grid: with `bits`, s is the step of the symmetric grid for the whole
tensor that spans the weights after splitting. That is what `Weights(bits, PerTensor(), ranges=MinMax())` chooses; on
another grid the identity holds by accident only. Methods that choose the codes of both parts with regard to each other,
AdaRound among them, have no need of it.

What differs from the source: it leaves the first layer in float, which here is for an override of the recipe to say
(split it is, all the same). A grouped layer stays as it is, since one group cannot have a channel more than the others;
so does a weight that other operations read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from roundwise.errors import RecipeError
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.graph import Graph
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.settings import check_types
from roundwise.numerics.grid import Codebook, affine_grid

aten = torch.ops.aten

ROUNDS = 12
"""How often split and step are fitted to each other: each time the step comes nearer by a factor of at least 4."""


@final
@dataclass(frozen=True)
class OutlierChannelSplitting(GraphRewrite):
    """Split the input channels that hold the largest weights into two of half the size.

    Args:
        ratio: channels to add to each layer, as a share of those it has, above 0 and up to 1; rounded up, so at least
            one. The source has 0.01 to 0.05.
        bits: of the per-tensor min-max grid for which the parts are laid half a step apart; None makes equal halves.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Zhao et al., ICML 2019, arXiv:1901.09504, Section 3.
    """

    ratio: float = 0.02
    bits: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.ratio <= 1:
            raise RecipeError(f"{self}: ratio is a share of the channels; it must be above 0 and at most 1.")
        if self.bits is not None:
            Codebook(self.bits)  # raises

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
        graph.constants[layer.weight] = parts.movedim(0, axis).contiguous()
        repeated = graph.add_constant(f"{layer.weight}_channels", index)
        for call in layer.calls:
            _repeat_channels(graph, call, repeated, layer.map.dims)


def split(channels: Tensor, count: int, step: float = 0.0) -> tuple[Tensor, Tensor]:
    """Split the channel with the largest weight, so many times.

    Args:
        channels: `[channels, …]`.
        count: how many channels are added.
        step: the parts' distance is half of it.

    Returns:
        The parts `[channels + count, …]`, and of which channel each one is, int64.
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
    """Of the grid that spans all parts."""
    low, high = (end.reshape(1, 1, 1) for end in torch.aminmax(parts))
    return float(affine_grid(low, high, codebook).scale)


def _repeat_channels(graph: Graph, call: fx.Node, index: fx.Node, dims: int) -> None:
    """Let a call of the layer read its input's channels in the order of the parts."""
    source = call.args[0]
    assert isinstance(source, fx.Node)
    value, size = source.meta["val"], graph.constants[str(index.target)].numel()
    axis = value.dim() - dims - 1  # a batch dimension may be missing, and positions may stand before features
    with graph.operations.inserting_before(call):
        repeated = graph.operations.call_function(aten.index_select.default, (source, axis, index))
    repeated.meta["val"] = value.new_empty([*value.shape[:axis], size, *value.shape[axis + 1 :]])
    call.args = (repeated, *call.args[1:])
