"""Scales with which biases fit into the integers of a runtime.

Runtimes with integer arithmetic keep the bias b of a layer as an integer of 32 bits in steps of s_x · s_w, the scale of
the layer's input times the scale of its weights. A channel that batch-norm has switched off has weights near 0, such as
1e-12, and an ordinary bias: then b / (s_x · s_w) overflows, and the channel's output is wrong. So for every channel

    s_w ≥ |b| / (s_x · 2³⁰),

and the codes of such a channel are rounded anew. With activations of at most 8 bits this costs nothing that could be
measured: the output changes by at most 2⁻²³ of |b| for each input of the channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.graph.analysis.activations import find_activations
from roundwise.graph.graph import Graph
from roundwise.numerics.grid import Grid
from roundwise.numerics.quantizer import Quantizer
from roundwise.targets import TARGETS

BIAS_BITS = min((target.bias_bits for target in TARGETS.values() if target.bias_bits is not None), default=None)
"""The narrowest integers in which a target keeps biases."""

INTEGER_BITS = 8
"""Integer arithmetic is for codes of at most 8 bits. With wider activations the larger scales would cost accuracy."""


def fit_biases(
    graph: Graph, weights: Sequence[QuantizedWeight], quantizers: Mapping[fx.Node, Quantizer]
) -> tuple[list[QuantizedWeight], dict[str, str]]:
    """Weights with scales large enough for their biases.

    Returns:
        The weights, and a note for each layer that was changed, by its name.
    """
    if BIAS_BITS is None or not quantizers:
        return list(weights), {}
    scales: dict[fx.Node, float] = {}  # by call of a layer: the smallest scale of its input
    for group in find_activations(graph, {call for weight in weights for call in weight.layer.calls}):
        quantizer = quantizers.get(group.nodes[0])
        if quantizer is not None and quantizer.codebook.bits <= INTEGER_BITS:
            scales.update({node: min(quantizer.scale, scales.get(node, quantizer.scale)) for node in group.readers})
    fitted: list[QuantizedWeight] = []
    notes: dict[str, str] = {}
    for weight in weights:
        inputs = [scales[call] for call in weight.layer.calls if call in scales]
        smallest = _smallest_scales(weight, min(inputs)) if inputs else None
        if smallest is None or not (raised := weight.grid.scale < smallest).any():
            fitted.append(weight)
            continue
        grid, zero_point = weight.grid, weight.grid.zero_point
        scale = torch.where(raised, smallest, grid.scale)
        codes = ((weight.codes - zero_point) * (grid.scale / scale)).round() + zero_point
        new = torch.where(raised, codes.to(weight.codes.dtype), weight.codes)
        fitted.append(dataclasses.replace(weight, codes=new, grid=Grid(scale, zero_point, grid.codebook)))
        notes[weight.layer.name] = (
            f"the scales of {int(raised.sum())} of {raised.numel()} channels were raised so that their biases fit into "
            f"{BIAS_BITS} bits in integer arithmetic"
        )
    return fitted, notes


def _smallest_scales(weight: QuantizedWeight, input_scale: float) -> Tensor | None:
    """The smallest scale of each channel, in the shape of the scales; None for layers that compute in float."""
    bias, grid, layer = weight.bias, weight.grid, weight.layer.map
    groups, rows, _ = layer.matrix_shape
    if bias is None or BIAS_BITS is None or grid.codebook.bits > INTEGER_BITS:
        return None
    if grid.granularity_shape != (groups, rows, 1):  # a raised scale would cost other channels accuracy
        return None
    return (bias.float().abs() / (input_scale * 2.0 ** (BIAS_BITS - 2))).reshape(groups, rows, 1)
