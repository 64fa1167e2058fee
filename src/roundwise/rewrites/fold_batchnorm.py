"""Fold batch-norm into the linear layer or convolution beside it.

In evaluation a batch-norm is an affine map of each channel, with a = γ / √(σ² + ε):

    bn(z) = a z + (β − a μ)

*After* a layer it always folds, channel by channel of the output:

    bn(W x + b) = (a W) x + (a b + β − a μ)

*Before* a layer, the scale goes into the columns and the shift through the weights into the bias:

    W bn(x) + b = (W a) x + (b + W (β − a μ))

which is exact as long as every output sees every tap: where a convolution pads, the padded zeros would have been zeros
*after* the batch-norm, so only a batch-norm without shift folds forward into a padded convolution. The fold is computed
in float64 and stored in the weight's own dtype.

A batch-norm stays, and goes on working, where its layer's output is used by others too, where the layer's weight is
shared with a call that is not followed by the same batch-norm, and where its statistics come from the batch.

References:
    Krishnamoorthi 2018, arXiv:1806.08342, Section 3.2; Nagel et al., ICCV 2019, arXiv:1906.04721, Section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from roundwise.graph.capture import Graph, bind
from roundwise.graph.normalize import WEIGHTED
from roundwise.graph.patterns import Layer, find_layers, linear_map

_BATCH_NORM = torch.ops.aten.batch_norm.default


class _Affine(NamedTuple):
    """What a batch-norm does to each channel, float64 `[channels]`."""

    scale: Tensor
    shift: Tensor


def fold_batchnorm(graph: Graph) -> Graph:
    """Return an equal graph with every batch-norm folded that can be folded exactly."""
    graph = graph.copy()
    for layer in find_layers(graph):
        _fold_after(graph, layer)
    for layer in find_layers(graph):
        _fold_before(graph, layer)
    graph.prune()
    return graph


def _fold_after(graph: Graph, layer: Layer) -> None:
    norms: list[fx.Node] = []
    for call in _all_calls(graph, layer):
        users = list(call.users)
        if len(users) != 1 or users[0].target is not _BATCH_NORM or users[0].args[0] is not call:
            return
        if linear_map(graph, call).dims == 0 and call.meta["val"].dim() != 2:  # type: ignore[union-attr]
            return  # batch-norm's channels are dimension 1, a linear layer's are the last
        norms.append(users[0])
    if any(norm.args[1:] != norms[0].args[1:] for norm in norms):
        return
    if any(bind(call)["bias"] is not bind(layer.node)["bias"] for call in layer.calls):
        return
    affine = _affine(graph, norms[0])
    if affine is None:
        return
    weight = graph.constants[layer.weight]
    matrix = layer.map.to_matrix(weight).double()
    matrix = matrix * affine.scale.reshape(matrix.shape[0], matrix.shape[1], 1)
    bias = affine.shift if layer.map.bias is None else layer.map.bias.double() * affine.scale + affine.shift
    _replace(graph, layer, matrix, bias)
    for norm in norms:
        norm.replace_all_uses_with(norm.args[0])  # type: ignore[arg-type]
        graph.operations.erase_node(norm)


def _fold_before(graph: Graph, layer: Layer) -> None:
    norm = layer.input
    if norm.target is not _BATCH_NORM or set(norm.users) != {layer.node} or len(_all_calls(graph, layer)) != 1:
        return
    affine = _affine(graph, norm)
    if affine is None or (layer.map.dims == 0 and norm.meta["val"].dim() != 2):
        return
    sees_every_tap = not layer.map.transposed and (
        layer.map.padding == "valid" or not any(layer.map.padding) or layer.map.kernel == (1,) * layer.map.dims
    )
    padded = not isinstance(layer.map.padding, str) and any(layer.map.padding)
    if affine.shift.any() and (not sees_every_tap or padded):
        return
    groups, rows, cols = layer.map.matrix_shape
    matrix = layer.map.to_matrix(graph.constants[layer.weight]).double()
    taps = cols // (affine.scale.numel() // groups)

    def per_column(channel: Tensor) -> Tensor:
        return channel.reshape(groups, 1, -1).repeat_interleave(taps, dim=2)

    bias = (matrix * per_column(affine.shift)).sum(-1).reshape(groups * rows)
    if layer.map.bias is not None:
        bias = bias + layer.map.bias.double()
    _replace(graph, layer, matrix * per_column(affine.scale), bias)
    norm.replace_all_uses_with(norm.args[0])  # type: ignore[arg-type]
    graph.operations.erase_node(norm)


def _all_calls(graph: Graph, layer: Layer) -> list[fx.Node]:
    """Every node that reads the weight, also those that do not use it as this layer does."""
    return [user for node in graph.operations.nodes if node.target == layer.weight for user in node.users]


def _affine(graph: Graph, norm: fx.Node) -> _Affine | None:
    a = bind(norm)
    mean, variance = graph.constant(a["running_mean"]), graph.constant(a["running_var"])
    if a["training"] or mean is None or variance is None:
        return None
    gamma, beta = graph.constant(a["weight"]), graph.constant(a["bias"])
    scale = (variance.double() + a["eps"]).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -scale * mean.double()
    return _Affine(scale, shift if beta is None else shift + beta.double())


def _replace(graph: Graph, layer: Layer, matrix: Tensor, bias: Tensor) -> None:
    """Give the layer a new weight and a bias, under the names that it had."""
    old = graph.constants[layer.weight]
    graph.constants[layer.weight] = layer.map.to_weight(matrix).to(old.dtype)
    node = graph.add_constant(layer.weight.removesuffix("weight") + "bias", bias.to(old.dtype))
    for call in layer.calls:
        assert call.target in WEIGHTED
        call.args = (call.args[0], call.args[1], node, *call.args[3:])
