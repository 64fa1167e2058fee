"""Tiny layers with samples: a case for every kind of layer, grid and content that a method must handle.

The inputs are correlated like real ones, since otherwise rounding to nearest is hard to beat. The inputs x̂ of the
quantized network are the float network's x plus noise. The targets come from x, so every case is asymmetric (Eq. 25).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.methods.interfaces import Problem, RangeEstimator, Rounding
from roundwise.methods.ranges import MinMax
from roundwise.numerics.grid import BITS, Codebook, Granularity, Grid, PerChannel, PerGroup, PerTensor
from roundwise.statistics import Nothing, Statistic

S = TypeVar("S", bound=Statistic)

SAMPLES = 48

RELU, RELU6 = Nonlinearity(torch.relu, (0.0, math.inf)), Nonlinearity(F.relu6, (0.0, 6.0))


@final
@dataclass(frozen=True, eq=False)
class Case:
    """One layer, its samples, and how its weights are to be quantized.

    Attributes:
        name: says what is special about the case.
        layer: the linear map, with its bias.
        weight: float32 matrix `[groups, rows, cols]`.
        inputs: x̂, of the quantized network before this layer, `[samples, …]`.
        targets: y = W x + b, of the float network.
        codebook, granularity: the grid that is asked for.
        nonlinearity: the function that follows the layer, or None.
    """

    name: str
    layer: LinearMap
    weight: Tensor
    inputs: Tensor
    targets: Tensor
    codebook: Codebook = Codebook(4)
    granularity: Granularity = PerChannel()
    nonlinearity: Nonlinearity | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.inputs.shape[0]

    def to(self, device: torch.device) -> Case:
        """The same case on another device."""
        bias = None if self.layer.bias is None else self.layer.bias.to(device)
        return dataclasses.replace(
            self,
            layer=dataclasses.replace(self.layer, bias=bias, device=device),
            weight=self.weight.to(device),
            inputs=self.inputs.to(device),
            targets=self.targets.to(device),
        )

    def statistic(self, kind: type[S], batches: Sequence[int] = ()) -> S:
        """A statistic of the samples, which it sees in batches of the given sizes (by default, three batches)."""
        batches = batches or ((20, 20, 8) if self.samples == SAMPLES else (self.samples,))
        statistic = kind.empty(self.layer, self.samples, torch.Generator().manual_seed(0))
        for inputs, targets in zip(self.inputs.split(list(batches)), self.targets.split(list(batches)), strict=True):
            statistic.add(inputs, targets, len(inputs))
        return statistic

    def grid(self, estimator: RangeEstimator[Nothing] = MinMax()) -> Grid:
        """A grid for the weights."""
        return estimator.estimate(self.weight, self.codebook, self.granularity, Nothing(), self.name)

    def problem(self, needs: type[S], grid: Grid | None = None) -> Problem[S]:
        """The rounding problem, on the min-max grid unless another is given."""
        grid, bias = grid or self.grid(), self.layer.bias_rows
        return Problem(self.name, self.weight, bias, grid, self.statistic(needs), self.nonlinearity, bias_is_free=True)

    def objective(self, grid: Grid, rounding: Rounding, *, nonlinearity: bool = True) -> float:
        """‖f_a(y) − f_a(ŵ x̂ + b)‖² (Eq. 25): summed over channels, mean over samples and positions; in float64.

        Args:
            grid: the grid of the codes, unless the rounding has a grid of its own.
            rounding: the answer of a solver.
            nonlinearity: False leaves out f_a.
        """
        weight = (rounding.grid or grid).dequantize(rounding.codes).double()
        layer = self.layer
        if rounding.bias_shift is not None and layer.bias is not None:
            layer = dataclasses.replace(layer, bias=layer.bias.double() + rounding.bias_shift.double().flatten())
        outputs, targets = layer.apply_matrix(weight, self.inputs.double()), self.targets.double()
        if nonlinearity and self.nonlinearity is not None:
            outputs, targets = self.nonlinearity(outputs), self.nonlinearity(targets)
        return float(self.layer.fold_outputs(outputs - targets).square().sum((0, 1)).mean())


def cases() -> tuple[Case, ...]:
    """Cases that differ in layer, codebook, granularity, nonlinearity and content; the same at each call."""
    linear, conv = _linear(10, 4), _conv2d(3, 4)
    layers = [
        linear,
        _conv("conv1d", (4, 3, 3), (SAMPLES, 3, 7), padding=1),
        conv,
        _conv("strided and dilated conv2d", (4, 3, 2, 2), (SAMPLES, 3, 6, 6), stride=(2, 1), dilation=(1, 2)),
        _conv("grouped conv2d", (6, 2, 2, 2), (SAMPLES, 4, 5, 5), groups=2),
        _conv("depthwise conv2d", (5, 1, 3, 3), (SAMPLES, 5, 4, 4), padding=1, groups=5),
        _conv("conv3d", (2, 2, 2, 2, 2), (SAMPLES, 2, 3, 3, 3)),
        _conv("conv_transpose2d", (4, 2, 2, 2), (SAMPLES, 4, 2, 3), stride=2, groups=2, transposed=True),
    ]
    grids = [
        _with(base, f"{bits} bits, {'symmetric' if symmetric else 'asymmetric'}", codebook=Codebook(bits, symmetric))
        for bits in BITS
        for symmetric, base in ((True, linear), (False, conv))
    ]
    granularities = [
        _with(base, word, codebook=Codebook(4, symmetric), granularity=granularity)
        for base, size in ((linear, 5), (layers[4], 4))
        for symmetric in (True, False)
        for word, granularity in (("per tensor", PerTensor()), (f"groups of {size}", PerGroup(size)))
    ]
    nonlinearities = [
        _with(linear, "relu", nonlinearity=RELU),
        _with(conv, "relu6", nonlinearity=RELU6, codebook=Codebook(3)),
        _with(linear, "gelu", nonlinearity=Nonlinearity(F.gelu), granularity=PerTensor()),
    ]
    return (*layers, *grids, *granularities, *nonlinearities, *_contents(linear, conv))


def tiny_cases() -> tuple[Case, ...]:
    """Cases of at most 10 columns, so that every rounding of a row can be tried; most have 3 bits."""
    three = Codebook(3)
    return (
        _with(_linear(8, 4), "3 bits", codebook=three),
        _with(_linear(10, 3), "3 bits, asymmetric, per tensor", codebook=Codebook(3, False), granularity=PerTensor()),
        _with(_linear(9, 4), "3 bits, relu", codebook=three, nonlinearity=RELU),
        _with(_conv2d(2, 3), "3 bits, relu", codebook=three, nonlinearity=RELU),
        _with(
            _conv("depthwise conv2d", (4, 1, 3, 3), (SAMPLES, 4, 5, 5), padding=1, groups=4),
            "3 bits",
            codebook=three,
        ),
        _with(_conv("grouped conv1d", (4, 2, 3), (SAMPLES, 4, 6), groups=2), "groups of 3", granularity=PerGroup(3)),
    )


def _contents(linear: Case, conv: Case) -> list[Case]:
    """Cases with unusual weights or inputs."""
    sparse = linear.weight.clone()
    sparse[..., ::3] = 0
    empty_row = linear.weight.clone()
    empty_row[:, 1] = 0
    on_grid = linear.grid().fake_quantize(linear.weight)
    dead = linear.inputs.clone()
    dead[:, 2:5] = 0
    channel = conv.inputs.clone()
    channel[:, 1] = 0
    return [
        _with(linear, "some zero weights", weight=sparse),
        _with(linear, "one zero row", weight=empty_row),
        _with(linear, "one zero row, asymmetric", weight=empty_row, codebook=Codebook(4, False)),
        _with(linear, "all weights zero", weight=torch.zeros_like(linear.weight)),
        _with(conv, "all weights zero, asymmetric", weight=torch.zeros_like(conv.weight), codebook=Codebook(4, False)),
        _with(linear, "all weights equal", weight=torch.full_like(linear.weight, 0.3)),
        _with(linear, "all weights positive, asymmetric", weight=linear.weight.abs() + 1, codebook=Codebook(4, False)),
        _with(linear, "weights on the grid", weight=on_grid),
        _with(linear, "weights of 1e-12", weight=linear.weight * 1e-12, targets=linear.targets * 1e-12),
        _with(linear, "dead inputs", inputs=dead),
        _with(conv, "a dead channel, relu", inputs=channel, nonlinearity=RELU),
        _with(linear, "all inputs zero", inputs=torch.zeros_like(linear.inputs)),
        _with(conv, "samples in float16", inputs=conv.inputs.half(), targets=conv.targets.half()),
    ]


def _with(base: Case, name: str, **changes: Any) -> Case:
    """The case with some attributes changed; new weights get new targets."""
    if "weight" in changes and "targets" not in changes:
        changes["targets"] = base.layer.apply_matrix(changes["weight"], base.inputs)
    return dataclasses.replace(base, name=f"{base.name}, {name}", **changes)


def _linear(inputs: int, outputs: int) -> Case:
    generator = torch.Generator().manual_seed(inputs)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.4
    bias = torch.randn(outputs, generator=generator) * 0.1
    layer = LinearMap((outputs, inputs), bias, torch.device("cpu"))
    return _case(f"linear {inputs} to {outputs}", layer, weight, (SAMPLES, 4, inputs), generator)


def _conv2d(channels: int, outputs: int) -> Case:
    return _conv(f"conv2d {channels} to {outputs}", (outputs, channels, 2, 2), (SAMPLES, channels, 5, 5))


def _conv(name: str, weight_shape: tuple[int, ...], input_shape: tuple[int, ...], **arguments: Any) -> Case:
    """A convolution with the given arguments, others as PyTorch's defaults."""
    arguments = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "transposed": False, **arguments}
    generator = torch.Generator().manual_seed(len(name))
    weight = torch.randn(weight_shape, generator=generator) * 0.4
    outputs = weight_shape[1] * arguments["groups"] if arguments["transposed"] else weight_shape[0]
    bias = torch.randn(outputs, generator=generator) * 0.1
    return _case(name, LinearMap.from_arguments(weight, bias, arguments), weight, input_shape, generator)


def _case(name: str, layer: LinearMap, weight: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Case:
    """A case whose inputs share a part among all features, with a mean other than 0; x̂ is x plus about 5 % noise."""
    own = torch.randn(shape, generator=generator)
    shared = torch.randn(shape[0], *(1,) * (len(shape) - 1), generator=generator)
    inputs = 0.5 * own + shared + 0.3
    noisy = inputs + 0.05 * torch.randn(shape, generator=generator)
    return Case(name, layer, layer.to_matrix(weight), noisy, layer.apply(weight, inputs))
