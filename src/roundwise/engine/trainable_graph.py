"""Insert into a graph the modules that a trainable network needs, and compute their parameters from a network.

`engine/trainable.py` says what for. A folded batch-norm is brought back here, a quantized weight gets a module that
quantizes it, and a dropped dropout its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, fx, nn

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.engine.network import Network
from roundwise.graph.analysis.activations import kind_of
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.analysis.moments import BATCH_NORM
from roundwise.graph.graph import Graph, bind, set_argument
from roundwise.graph.operators import DROPOUTS
from roundwise.graph.training import DroppedDropout, FoldedBatchNorm, RunningStatistics
from roundwise.methods.interfaces import LearnedQuantization
from roundwise.numerics.grid import Grid, expand_blocks

EDGE = 0.25
"""At the start, weights lie at most a quarter of a step from their code. At half a step, where those are whose code is
not the nearest, the first steps of training would change these codes back to the nearest; at 0, training would not know
between which codes the float weights were, which costs accuracy at 2 bits."""

BATCH_NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
DROPOUT_MODULES: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout,
    "feature_dropout": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}


class TrainedLayer(NamedTuple):
    """Where the parts of one layer are in a `Trainable`.

    Attributes:
        weight: name of the parameter, and of the constant in the graph.
        bias: name of the bias in the graph; None where the layer has none of its own.
        quantizer: name of the module that quantizes the weight; None if it stays in float.
        batch_norm: name of the batch-norm that was brought back, or None.
    """

    weight: str
    bias: str | None
    quantizer: str | None
    batch_norm: str | None


@final
class Builder:
    """Makes the graph of a `Trainable`, and its parts: constants, and modules by their names."""

    def __init__(self, network: Network, quantization: LearnedQuantization) -> None:
        self.quantization = quantization
        self.quantized = {weight.layer.weight: weight for weight in network.weights}
        self.quantizers = {node.name: quantizer for node, quantizer in network.quantizers.items()}
        self.graph = network.graph.copy()
        self.moments = network.graph.moments
        self.modules: dict[str, nn.Module] = {}
        self.layers: list[TrainedLayer] = []
        self.activations: dict[str, str] = {}
        self._results: dict[str, fx.Node] = {}  # by an operation's name: the node that now gives its value

    def build(self) -> None:
        """Insert the modules into the graph."""
        named = {node.name: node for node in self.graph.operations.nodes}
        for layer in find_layers(self.graph):
            self._insert_layer(layer)
        for node in named.values():
            if node.target is BATCH_NORM:
                self._replace_batch_norm(node)
            elif node.target in DROPOUTS and not bind(node)["train"]:
                source = node.args[0]
                module = DROPOUT_MODULES[kind_of(node)](float(bind(node)["p"]))
                self._replace(node, self._insert_after(source, f"dropouts.{node.name}", module, readers=[node]))
        shared: dict[int, str] = {}
        for name, quantizer in self.quantizers.items():
            path = shared.setdefault(id(quantizer), f"activation_quantizers.{name}")
            if path not in self.modules:
                self.modules[path] = self.quantization.activation(quantizer, self._device())
            self.activations[name] = path
            self._insert_after(named[name], path)
        for node in named.values():
            for record in node.meta.get("dropout", ()):
                self._insert_dropout(node, record)
        self.graph.prune()

    def results(self) -> dict[str, fx.Node]:
        """For each operation of the network's graph that is left, the node that gives the value its readers read."""
        return {node.name: node for node in self.graph.operations.nodes} | self._results

    # --------------------------------------------------------------------------------------------------- layers

    def _insert_layer(self, layer: Layer) -> None:
        quantized = self.quantized.get(layer.weight)
        matrix = layer.map.to_matrix(self.graph.constants[layer.weight]).double()
        grid, bias = None, layer.map.bias
        if quantized is not None:
            grid, bias = quantized.grid, quantized.bias
            matrix = _within_codes(matrix, quantized)
        norm, norm_name = self._folded(layer, grid, bias), None
        if norm is not None:
            record, factor, module = norm
            norm_name = record.name
            rows = torch.where(factor == 0, 1.0, factor).reshape(*matrix.shape[:2], 1)
            matrix = matrix / rows
            grid = None if grid is None else _with_scale(grid, grid.scale.double() / rows)
            for call in layer.calls:
                set_argument(call, "bias", None)
                self._insert_after(call, record.name, module)
        elif layer.own_bias is not None and bias is not None:
            self.graph.constants[layer.own_bias] = bias
        dtype = self.graph.constants[layer.weight].dtype
        self.graph.constants[layer.weight] = layer.map.to_weight(matrix).to(dtype).contiguous()
        path = None
        if grid is not None:
            path = f"{layer.name}.weight_quantizer"
            self.modules[path] = self.quantization.weight(grid, layer.map)
            first = layer.calls[0]
            with self.graph.operations.inserting_before(first):
                node = self.graph.operations.call_module(path, (first.args[1],))
            for call in layer.calls:
                set_argument(call, "weight", node)
        self.layers.append(TrainedLayer(layer.weight, layer.own_bias, path, norm_name))

    def _folded(
        self, layer: Layer, grid: Grid | None, bias: Tensor | None
    ) -> tuple[FoldedBatchNorm, Tensor, nn.Module] | None:
        """The batch-norm that was folded into a layer: its record, the factor of each channel, and the module."""
        records = {id(call.meta.get("batch_norm")): call.meta.get("batch_norm") for call in layer.calls}
        record, moments = next(iter(records.values())), self.moments.get(layer.weight)
        per_tensor = grid is not None and grid.granularity_shape[:2] != layer.map.matrix_shape[:2]
        if len(records) > 1 or record is None or moments is None or per_tensor or layer.own_bias is None:
            return None
        if record.variance.numel() != moments.std.numel() or bias is None or record.name in self.modules:
            return None
        # Where a channel is constant, nothing tells whether edits have scaled it: the factor is that of the fold.
        lives = (record.variance > 0) & (moments.std > 0)
        factor = torch.where(lives, moments.std / record.variance.clamp(min=1e-38).sqrt(), record.gain)
        module = BATCH_NORMS[layer.map.dims + 2](
            moments.std.numel(),
            eps=record.eps,
            momentum=record.momentum,
            affine=True,
            device=bias.device,
            dtype=_norm_dtype(bias),
        )
        mean = torch.where(factor > 0, (moments.mean - bias.double()) / factor.clamp(min=1e-38), 0.0)
        with torch.no_grad():
            module.weight.copy_(factor * (record.variance + record.eps).sqrt())
            module.bias.copy_(moments.mean)
            module.get_buffer("running_mean").copy_(mean)
            module.get_buffer("running_var").copy_(record.variance)
            module.get_buffer("num_batches_tracked").fill_(record.batches)
        for parameter in module.parameters():
            parameter.requires_grad_(record.affine and record.trainable)
        return record, factor, module

    # ------------------------------------------------------------------------------------- batch-norm and dropout

    def _replace_batch_norm(self, node: fx.Node) -> None:
        """Put a module in the place of a batch-norm that was never folded."""
        a = bind(node)
        tensors = {name: self.graph.constant(a[name]) for name in ("weight", "bias", "running_mean", "running_var")}
        if a["training"] or tensors["running_mean"] is None or tensors["running_var"] is None:
            return
        statistics = str(a["running_mean"].target)
        running = self.graph.training.running_statistics.get(statistics, RunningStatistics(a["momentum"]))
        path = statistics.rpartition(".")[0] or node.name
        if path not in self.modules:
            module = BATCH_NORMS[node.meta["val"].dim()](
                tensors["running_mean"].numel(),
                a["eps"],
                running.momentum,
                a["weight"] is not None,
                device=tensors["running_mean"].device,
                dtype=_norm_dtype(tensors["running_mean"]),
            )
            with torch.no_grad():
                for name, value in tensors.items():
                    if value is not None:
                        getattr(module, name).copy_(value)
                module.get_buffer("num_batches_tracked").fill_(running.batches)
            for name in ("weight", "bias"):
                origin = None if a[name] is None else self.graph.training.origins.get(str(a[name].target))
                if origin is not None and not origin.trainable:
                    getattr(module, name).requires_grad_(False)
            self.modules[path] = module
        with self.graph.operations.inserting_before(node):
            new = self.graph.operations.call_module(path, (a["input"],))
        new.meta = dict(node.meta)
        self._results[node.name] = new
        self._replace(node, new)

    def _insert_dropout(self, node: fx.Node, record: DroppedDropout) -> None:
        """Bring a dropout back, for those who read the values through it."""
        result = self._results.get(node.name, node)
        readers = [user for user in result.users if not record.readers or user.name in record.readers]
        module = DROPOUT_MODULES[record.operation](record.probability)
        if readers:
            self._insert_after(node, f"dropouts.{node.name}", module, readers=readers)

    # ----------------------------------------------------------------------------------------------------- nodes

    def _insert_after(
        self, node: fx.Node, path: str, module: nn.Module | None = None, readers: Sequence[fx.Node] | None = None
    ) -> fx.Node:
        """Let a module work on a value; readers of the value, all or some, read what the module gives."""
        if module is not None:
            self.modules.setdefault(path, module)
        result = self._results.get(node.name, node)
        operations = self.graph.operations
        place = next(one for one in operations.nodes if one.op not in ("placeholder", "get_attr"))
        with operations.inserting_before(place if result.op == "placeholder" else result.next):
            new = operations.call_module(path, (result,))
        new.meta = {"val": result.meta.get("val")}
        if readers is None:
            result.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
            self._results[node.name] = new
        else:
            for reader in readers:
                reader.replace_input_with(result, new)
        return new

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        node.replace_all_uses_with(new)
        self.graph.operations.erase_node(node)

    def _device(self) -> torch.device:
        return next(value.device for value in self.graph.constants.values())


def _within_codes(matrix: Tensor, quantized: QuantizedWeight) -> Tensor:
    """The float weights, moved as little as possible so that rounding gives the chosen codes; float64."""
    grid, codes, cols = quantized.grid, quantized.codes.double(), matrix.shape[-1]
    zero_point = expand_blocks(grid.zero_point, cols)
    in_codes = matrix / grid.scales(cols).double() + zero_point
    inside = torch.minimum(torch.maximum(in_codes, codes - EDGE), codes + EDGE)
    return (inside - zero_point) * grid.scales(cols).double()


def _with_scale(grid: Grid, scale: Tensor) -> Grid:
    scale = scale.float()
    return Grid(scale, grid.zero_point.expand_as(scale).contiguous(), grid.codebook)


def parameter_or_buffer(graph: Graph, name: str, value: Tensor, read_by_layers: bool) -> nn.Parameter | Tensor:
    """A parameter where training may change the constant, else a buffer."""
    origin = graph.training.origins.get(name)
    if not value.is_floating_point():
        return value.clone()
    if origin is None or origin.kind == "computed":
        trains = read_by_layers and (origin is None or origin.trainable)
        return nn.Parameter(value.clone()) if trains else value.clone()
    if origin.kind == "parameter":
        return nn.Parameter(value.clone(), requires_grad=origin.trainable)
    return value.clone()


def place(owner: nn.Module, name: str, value: Any) -> None:
    """Put a parameter, a buffer or a module at a dotted name; containers are made on the way.

    A module takes over what a container of its name holds already.
    """
    *path, last = name.split(".")
    for part in path:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(last, value)
    elif isinstance(value, Tensor):
        owner.register_buffer(last, value)
    elif isinstance(value, nn.Module):
        container = getattr(owner, last, None)
        for child, module in list(container.named_children()) if isinstance(container, nn.Module) else ():
            value.add_module(child, module)
        owner.add_module(last, value)
    else:
        setattr(owner, last, value)


def _norm_dtype(like: Tensor) -> torch.dtype:
    """The dtype of a batch-norm beside tensors of this dtype: float32 or better, whatever the default dtype is."""
    return torch.promote_types(like.dtype, torch.float32)
