"""A network as a module that any training loop can train: quantizers, batch-norm and dropout work as in training.

    network.graph       what is computed, folded and quantized by the stages before
      │  1. constants become parameters and buffers, under the names that they have in the model
      │  2. batch-norms that were folded come back; batch-norms and dropouts become modules that know `train()`
      │  3. each quantized weight goes through a `LearnedWeight`, each quantized activation through a
      │     `LearnedActivation`; their scales are parameters
      ▼
    Trainable           an nn.Module, called as the model is
      │  4. batch-norms are folded again, weights become codes, scales and zero points are read off
      ▼
    Network             for the next stage, or for the result

**Batch-norm comes back** because training at few bits needs it: the output of a layer shifts whenever a weight changes
its code, and batch-norm takes the shift away. With s the scale of the folded weights and n the factor by which folding
multiplied a channel, the weight that is trained is W = Ŵ/n with scale s/n, so that its codes are the same. Folding it
again at the end is exact. A layer with one scale for the whole tensor keeps its batch-norm folded, because channels
with one scale cannot be multiplied by different factors.

**The start** is the network that the stages before have made: each weight lies at most a quarter of a step from its
code, as near to the float weight as that allows. So the first forward pass gives the same codes, and the first steps of
training do not change back the codes that a rounding method has chosen against the nearest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.nn.modules.batchnorm import _BatchNorm

from roundwise.artifacts.emit import QuantizedWeight
from roundwise.artifacts.model import Model
from roundwise.engine.features import WatchedNetwork, input_leaves
from roundwise.engine.network import Network
from roundwise.engine.norm_statistics import reestimate
from roundwise.engine.real_offsets import apply_shifts
from roundwise.engine.recomputation import Segments
from roundwise.engine.trainable_graph import Builder, parameter_or_buffer, place
from roundwise.engine.training_data import TrainingBatch, training_batches
from roundwise.errors import ModelError
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.matrix import LinearMap
from roundwise.methods.interfaces import ActivationQuantizer, LearnedQuantization, WeightQuantizer
from roundwise.numerics.grid import SMALLEST_SCALE, Grid, expand_blocks
from roundwise.report import StageReport


class QuantizedParameter(NamedTuple):
    """A weight that is trained, with the module that quantizes it and the layer's linear map."""

    parameter: nn.Parameter
    quantizer: WeightQuantizer
    map: LinearMap

    def matrix(self) -> Tensor:
        """The weight as a matrix `[groups, rows, cols]`; gradients flow to the parameter."""
        return self.map.to_matrix(self.parameter)

    def codes(self) -> Tensor:
        """The present codes, int32 `[groups, rows, cols]`."""
        if self.quantizer.codes is not None:
            return self.quantizer.codes
        return self.quantizer.grid.quantize(self.matrix())

    @torch.no_grad()
    def hold(self, codes: Tensor) -> None:
        """Set weights to what codes stand for; where a code is NaN the weight stays."""
        matrix = self.matrix()
        held = torch.where(codes.isnan(), matrix, self.quantizer.grid.dequantize(codes).to(matrix.dtype))
        self.parameter.copy_(self.map.to_weight(held))


@final
class Trainable(nn.Module):
    """A network that any training loop can train. Call it like the model.

    Names in its `state_dict` are those of the model, and of the quantizers: `conv1.weight`, `bn1.running_mean`,
    `conv1.weight_quantizer.scale`, `activation_quantizers.relu.scale`. A state dict that is loaded goes on where it was
    saved; nothing is calibrated again.

    Attributes:
        network: what training started from.
    """

    def __init__(
        self, network: Network, quantization: LearnedQuantization, finish: Callable[[Network], Model] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self._finish = finish
        builder = Builder(network, quantization)
        builder.build()
        self._layers, self._activations = builder.layers, builder.activations
        self._maps = {layer.weight: layer.map for layer in find_layers(network.graph)}
        graph = builder.graph
        read = {name for layer in self._layers for name in (layer.weight, layer.bias)}
        for name, value in graph.constants.items():
            if isinstance(value, Tensor):
                value = parameter_or_buffer(graph, name, value, name in read)
            place(self, name, value)
        for name, module in builder.modules.items():
            place(self, name, module)
        operations, structure = graph.operations, graph.structure
        operations.set_codegen(
            _PyTreeCodeGen(_PyTreeInfo(list(structure.arguments), structure.in_spec, structure.out_spec))
        )
        module = fx.GraphModule(self, operations)
        self._in_spec, self._out_spec = structure.in_spec, structure.out_spec  # `_run` reads them
        self._run: Callable[..., Any] = type(module).forward
        self._operations, self._results = operations, builder.results()
        self._segments: Segments | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network, in training or evaluation mode."""
        if self._segments is None or not (self.training and torch.is_grad_enabled()):
            return self._run(self, *args, **kwargs)
        leaves = input_leaves(self.network.graph.structure, args, kwargs)
        outputs = pytree.tree_leaves(self._segments.run(*leaves))
        return outputs[0] if self._out_spec is None else pytree.tree_unflatten(outputs, self._out_spec)

    def watched(self, names: Sequence[str]) -> WatchedNetwork:
        """This network, so that it returns some tensors inside it too.

        Args:
            names: of the operations that give them, in the network from before training.
        """
        nodes = [self._results[name] for name in names]
        return WatchedNetwork(self, self._operations, self.network.graph.structure, nodes)

    def recompute(self, enabled: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
        self._segments = Segments(self, self._operations) if enabled else None

    # ---------------------------------------------------------------------------------------------- its parameters

    @property
    def quantizers(self) -> list[nn.Module]:
        """The modules that quantize weights and activations."""
        names = [layer.quantizer for layer in self._layers if layer.quantizer] + list(self._activations.values())
        return [self.get_submodule(name) for name in dict.fromkeys(names)]

    @property
    def batch_norms(self) -> list[_BatchNorm]:
        """The batch-norms: those that were brought back, and those that were never folded."""
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def parameters_by_kind(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that ask for gradients: `weights`, `biases`, `norms` and `scales` (with offsets)."""
        scales = {id(p) for module in self.quantizers for p in module.parameters()}
        norms = {id(p) for module in self.batch_norms for p in module.parameters()}
        kinds: dict[str, list[nn.Parameter]] = {"weights": [], "biases": [], "norms": [], "scales": []}
        for parameter in self.parameters():
            if not parameter.requires_grad:
                continue
            if id(parameter) in scales:
                kinds["scales"].append(parameter)
            elif id(parameter) in norms:
                kinds["norms"].append(parameter)
            else:
                kinds["biases" if parameter.dim() < 2 else "weights"].append(parameter)
        return kinds

    def parameter_groups(
        self, lr: float, *, weight_decay: float = 0.0, scales_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer: weight decay acts on weights only; scales may have a learning rate of their own.

        Args:
            lr: the learning rate of weights, biases and norms.
            weight_decay: of the weights.
            scales_lr: the learning rate of scales and offsets; None is `lr`.
        """
        rates = {"scales": lr if scales_lr is None else scales_lr}
        return [
            {
                "name": kind,
                "params": parameters,
                "lr": rates.get(kind, lr),
                "weight_decay": weight_decay if kind == "weights" else 0.0,
            }
            for kind, parameters in self.parameters_by_kind().items()
            if parameters
        ]

    def quantized_weights(self) -> Iterator[QuantizedParameter]:
        """The weights that are quantized, with their quantizers."""
        for layer in self._layers:
            if layer.quantizer is not None:
                quantizer = self._weight_quantizer(layer.quantizer)
                yield QuantizedParameter(self.get_parameter(layer.weight), quantizer, self._maps[layer.weight])

    @torch.no_grad()
    def hold_codes(self) -> None:
        """Keep the codes of all weights as they are: from now on only scales are trained, with their exact gradient.

        Where codes are rounded anew in each step, any change of a scale moves weights that lie between two codes to the
        nearer one, and so undoes what a rounding solver has chosen.
        """
        for weight in self.quantized_weights():
            weight.quantizer.codes = weight.codes()

    # ------------------------------------------------------------------------------------------- back to a network

    def finish(self, data: Any = None) -> Model:
        """The trained network as the usual result, which runs, saves and exports.

        Args:
            data: samples on which batch-norm's running statistics are estimated anew, in batches, changed at random as
                in training (crops, flips) if it changed them; None keeps those that training has left.

        Raises:
            ModelError: this module was not made by `rw.trainable`.
        """
        if self._finish is None:
            raise ModelError("this module has no way to finish: make it with `rw.trainable(model, data, recipe)`.")
        if data is not None:
            samples = training_batches(data, self.network.facts.signature)
            device = next(self.parameters()).device
            reestimate(self, (functools.partial(_call, self, batch.to(device)) for batch in samples))
        network = self.to_network()
        told = StageReport(
            "finetune", notes=("trained in a loop of the caller's own; all errors in this report are from before it",)
        )
        return self._finish(dataclasses.replace(network, reports=(*network.reports, told)))

    @torch.no_grad()
    def to_network(self) -> Network:
        """The network as training has left it: batch-norms folded, weights as codes, quantizers with their scales."""
        graph = self.network.graph.copy()
        for name, value in self.state_dict().items():
            if name in graph.constants:
                graph.constants[name] = value.detach().clone()
        codes: dict[str, tuple[Tensor, Grid]] = {}
        weights: dict[str, Tensor] = {}  # what the codes stand for, as matrices
        for layer in self._layers:
            norm = None if layer.batch_norm is None else self.get_submodule(layer.batch_norm)
            quantizer = None if layer.quantizer is None else self._weight_quantizer(layer.quantizer)
            weight, linear_map = self.get_parameter(layer.weight).detach(), self._maps[layer.weight]
            matrix, grid = linear_map.to_matrix(weight), None if quantizer is None else quantizer.grid
            chosen = None if quantizer is None or grid is None else _codes(quantizer, grid, matrix)
            if norm is not None:
                factor, shift = _affine(norm)
                assert layer.bias is not None
                graph.constants[layer.bias] = shift.to(weight.dtype)
                rows = factor.reshape(*matrix.shape[:2], 1)
                matrix = (matrix.double() * rows).to(weight.dtype)
                if grid is not None and chosen is not None:
                    chosen, grid = _multiplied(chosen, grid, rows)
            graph.constants[layer.weight] = linear_map.to_weight(matrix).contiguous()
            if grid is not None and chosen is not None:
                codes[layer.weight] = chosen, grid
                matrix = grid.dequantize(chosen)
            weights[layer.weight] = matrix
        shifts = {name: self._activation_quantizer(path).shift for name, path in self._activations.items()}
        shifted = apply_shifts(graph, {name: shift for name, shift in shifts.items() if shift}, weights)
        layers = {layer.weight: layer for layer in find_layers(graph)}
        nodes = {node.name: node for node in graph.operations.nodes}
        return dataclasses.replace(
            self.network,
            graph=graph,
            weights=tuple(QuantizedWeight(layers[name], *of_layer) for name, of_layer in codes.items()),
            quantizers={
                nodes[shifted.get(name, [name])[0]]: self._activation_quantizer(path).quantizer
                for name, path in self._activations.items()
            },
            reports=(*self.network.reports, *_report_on_offsets(shifted)),
        )

    def _weight_quantizer(self, path: str) -> WeightQuantizer:
        module = self.get_submodule(path)
        assert isinstance(module, WeightQuantizer)
        return module

    def _activation_quantizer(self, path: str) -> ActivationQuantizer:
        module = self.get_submodule(path)
        assert isinstance(module, ActivationQuantizer)
        return module


def _codes(quantizer: WeightQuantizer, grid: Grid, matrix: Tensor) -> Tensor:
    return grid.quantize(matrix) if quantizer.codes is None else quantizer.codes


def _report_on_offsets(shifted: Mapping[str, Sequence[str]]) -> tuple[StageReport, ...]:
    """An entry that says which real offsets are added in float arithmetic; empty if there are none."""
    notes = tuple(
        f"activation '{name}' has a real offset, which is added in float arithmetic before {', '.join(others)}: no "
        "bias can take it up there. LSQPlus(offset='integer') keeps these operations in integers"
        for name, (_, *others) in shifted.items()
        if others
    )
    return (StageReport("finetune", notes=notes),) if notes else ()


def _call(module: nn.Module, batch: TrainingBatch) -> object:
    return module(*batch.args, **batch.kwargs)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch-norm does in evaluation: it multiplies each channel by a factor and adds a shift; float64."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        factor = factor * norm.weight.double()
    shift = -norm.running_mean.double() * factor
    return factor, shift + norm.bias.double() if norm.affine else shift


def _multiplied(codes: Tensor, grid: Grid, factor: Tensor) -> tuple[Tensor, Grid]:
    """Codes and grid of a matrix whose rows were multiplied.

    Where a factor is negative, codes change their sign; the smallest of them has no counterpart, and becomes the
    largest. Where a factor is 0, the row is 0: its codes are those of 0.0, and its scale can be any.
    """
    cols = codes.shape[-1]
    zero = expand_blocks(grid.zero_point, cols)
    flipped = grid.clip(2 * zero - codes).to(codes.dtype)
    codes = torch.where(factor < 0, flipped, codes)
    scale = (grid.scale.double() * factor.abs()).float()
    nothing = scale <= SMALLEST_SCALE
    codes = torch.where(expand_blocks(nothing, cols), zero.to(codes.dtype), codes)
    scale = torch.where(nothing, grid.scale, scale)
    return codes, Grid(scale, grid.zero_point.expand_as(scale).contiguous(), grid.codebook)
