"""Make a task for each layer from the settings of a `Quantize` stage; list what stays in float; count stored bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx

from roundwise.artifacts.emit import QuantizedWeight, packed_bits
from roundwise.artifacts.plain import dtype_name
from roundwise.engine.activations import overridable_names
from roundwise.engine.unit import LayerTask
from roundwise.errors import ModelError
from roundwise.graph.analysis.edges import edge_layers
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.analysis.moments import Known, expected_columns, propagate
from roundwise.graph.graph import Graph
from roundwise.graph.operators import COPIES, EXPANSIONS, PERMUTATIONS, RESHAPES
from roundwise.graph.unit import Unit
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.numerics.grid import check_groups
from roundwise.recipe.files import name_of
from roundwise.recipe.settings import Weights, granularity_name
from roundwise.recipe.stages import Quantize
from roundwise.report import KeptFloat
from roundwise.statistics import ExpectedMeans
from roundwise.wording import human_bytes


def tasks_of_layers(graph: Graph, stage: Quantize) -> list[LayerTask]:
    """A task for each layer that will be quantized, in the order in which layers run.

    Raises:
        ModelError: there is no layer to quantize, or a layer has weights or biases that are not finite.
        RecipeError: an override matches no layer, or a layer's columns do not divide into groups of the chosen size.
    """
    layers = find_layers(graph)
    if not layers:
        raise ModelError(
            f"the model has no layer to quantize: among its {len(graph.operations.nodes)} operations is no linear "
            "layer and no convolution with a constant weight. Give a model that has such layers, with weights that "
            "are not computed while it runs."
        )
    names, operations = [layer.name for layer in layers], [layer.map.operation for layer in layers]
    tensors, kinds = overridable_names(graph)
    stage.exceptions.check(names, tensors, [*operations, *kinds])
    settings = stage.exceptions.weights(names, operations, stage.weights)
    if stage.edge_bits is not None:
        edges = edge_layers(graph, layers)
        settings = [
            replace(weights, bits=stage.edge_bits)
            if weights is not None and layer.weight in edges and not stage.exceptions.names_weights(layer.name)
            else weights
            for layer, weights in zip(layers, settings, strict=True)
        ]
    known = propagate(graph)
    tasks = [
        _task(graph, layer, weights, stage, known)
        for layer, weights in zip(layers, settings, strict=True)
        if weights is not None
    ]
    if not tasks:
        these = "the only layer" if len(layers) == 1 else f"all {len(layers)} layers"
        raise ModelError(
            f"the overrides keep {these} in float, so nothing is left to quantize. Remove an override, or give one "
            "that names fewer layers."
        )
    check_groups((task.layer.name, task.layer.map.matrix_shape[2], task.granularity) for task in tasks)
    return tasks


def _task(graph: Graph, layer: Layer, weights: Weights, stage: Quantize, known: Mapping[fx.Node, Known]) -> LayerTask:
    tensor = graph.constants[layer.weight].float()
    if not torch.isfinite(tensor).all():
        raise ModelError(
            f"layer '{layer.name}' has {int((~torch.isfinite(tensor)).sum())} weights that are NaN or infinite, of "
            f"{tensor.numel()}. The outputs of such a network are NaN or infinite: load weights that are finite."
        )
    if layer.map.bias is not None and not torch.isfinite(layer.map.bias).all():
        raise ModelError(
            f"layer '{layer.name}' has {int((~torch.isfinite(layer.map.bias)).sum())} biases that are NaN or infinite, "
            f"of {layer.map.bias.numel()}. These channels give NaN or infinity: load weights that are finite."
        )
    rounding = weights.rounding or stage.rounding
    method_names = (
        granularity_name(weights.granularity),
        name_of(weights.ranges, RANGE_ESTIMATORS),
        name_of(rounding, ROUNDING_SOLVERS),
    )
    methods = [method for method in (weights.ranges, rounding, stage.correction) if method is not None]
    expects = any(method.needs is ExpectedMeans for method in methods)
    return LayerTask(
        unit=Unit.of_layer(graph, layer),
        codebook=weights.codebook,
        granularity=weights.granularity,
        ranges=weights.ranges,
        rounding=rounding,
        method_names=method_names,
        correction=stage.correction,
        known={ExpectedMeans: _expected_means(layer, tensor, known)} if expects else {},
    )


def _expected_means(layer: Layer, weight: Tensor, known: Mapping[fx.Node, Known]) -> ExpectedMeans:
    try:
        inputs = expected_columns(layer.map, layer.node, known)
    except LookupError as error:
        return ExpectedMeans(layer.map, missing=str(error))
    return ExpectedMeans(layer.map, layer.map.to_matrix(weight), inputs)


def kept_float(graph: Graph, weights: list[QuantizedWeight]) -> list[KeptFloat]:
    """Each parameter with two or more dimensions that the quantized network reads as float, with the reason."""
    quantized = {weight.layer.weight: set(weight.layer.calls) for weight in weights}
    by_recipe = {layer.weight: layer.name for layer in find_layers(graph)}
    kept = []
    for node in graph.operations.nodes:
        value = graph.constant(node)
        if value is None or value.dim() < 2 or not (value.is_floating_point() or value.is_complex()):
            continue
        name = str(node.target)
        readers = sorted({str(user.target) for user in _readers(node) if user not in quantized.get(name, ())})
        if name in by_recipe and name not in quantized:
            kept.append(KeptFloat(by_recipe[name], value.numel(), "the recipe keeps it in float"))
        elif readers and value.numel() > max(value.shape):  # more than one number per channel, so not a scale or limit
            reason = f"read by {', '.join(readers)}, which is not a layer"
            if value.is_complex():
                reason = f"{dtype_name(value.dtype)} numbers, {human_bytes(value.nbytes)}, {reason}"
            kept.append(KeptFloat(name, value.numel(), reason))
    return kept


def _readers(constant: fx.Node) -> list[fx.Node]:
    """The operations that compute with a constant: what only moves its numbers is passed over."""
    readers: dict[fx.Node, None] = {}
    waiting = [constant]
    while waiting:
        for user in waiting.pop().users:
            if user.target in COPIES | RESHAPES | PERMUTATIONS | EXPANSIONS:
                waiting.append(user)
            else:
                readers[user] = None
    return list(readers)


def stored_bytes(graph: Graph) -> int:
    """Bytes of all constants in a file; codes and zero points are packed to their bits."""
    bits, size = packed_bits(graph), 0
    for name, tensor in graph.constants.items():
        if isinstance(tensor, Tensor):  # a constant may also be the sub-graph of a branch or loop
            size += -(-tensor.numel() * bits[name] // 8) if name in bits else tensor.nbytes
    return size
