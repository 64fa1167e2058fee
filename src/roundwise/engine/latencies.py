"""How long the layers of a network take in ONNX Runtime, each alone, one sample at a time, on one thread.

With several threads, times would vary more with what else runs on the machine.

The time of a layer does not fall to nothing with its channels. It is taken to be

    fixed  +  by_channels × share of the output channels that are left × share of the input channels              (1)

where the two numbers follow from the times of the layer with all channels and with half of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

from torch import fx

from roundwise.graph.analysis.layers import Layer
from roundwise.graph.costs import shape_for_one_sample
from roundwise.graph.graph import Graph
from roundwise.graph.matrix import LinearMap
from roundwise.runtimes.layer_times import LayerShape, LayerTimes
from roundwise.runtimes.onnxruntime import OnnxRuntime


@final
@dataclass(frozen=True)
class LayerSeconds:
    """The time of all calls of a layer, by (1); NaN where it was not measured.

    Attributes:
        fixed: seconds that it takes however few channels it has.
        by_channels: seconds that fall with the channels.
    """

    fixed: float = math.nan
    by_channels: float = math.nan

    @property
    def whole(self) -> float:
        """Seconds with all channels."""
        return self.fixed + self.by_channels


@final
@dataclass(frozen=True, eq=False)
class Latencies:
    """Measures layers; each shape once.

    Attributes:
        times: that are known so far.
    """

    times: LayerTimes = field(default_factory=lambda: LayerTimes(OnnxRuntime(threads=1)))

    def of_chain(self, graph: Graph, source: fx.Node, parts: Sequence[LinearMap]) -> float:
        """Seconds of layers that run one after the other on a value; 0 if the value's sizes depend on values.

        Raises:
            InferenceError: ONNX Runtime is not installed, or cannot run the layers.
        """
        shape = _shape_of_input(graph, source, parts[0])
        return 0.0 if shape is None else self.times.seconds(shape, [_shape(part) for part in parts])

    def of_layer(self, graph: Graph, layer: Layer) -> LayerSeconds:
        """The time of all calls of a layer, and how it falls with the channels.

        Raises:
            InferenceError: ONNX Runtime is not installed, or cannot run the layer.
        """
        fixed = whole = 0.0
        for call in layer.calls:
            source = call.args[0]
            assert isinstance(source, fx.Node)
            shape = _shape_of_input(graph, source, layer.map)
            if shape is None:  # it depends on values
                continue
            seconds = self.times.seconds(shape, [_shape(layer.map)])
            whole += seconds
            if (half := _half(layer.map)) is not None:
                shape[-1 - layer.map.dims] //= 2
                smaller = self.times.seconds(shape, [half])
                share = 1 / 2 if layer.map.is_depthwise else 1 / 4
                fixed += min(max(0.0, (smaller - share * seconds) / (1 - share)), seconds)
        return LayerSeconds(fixed, whole - fixed)


def _shape_of_input(graph: Graph, source: fx.Node, linear: LinearMap) -> list[int] | None:
    """The sizes of a layer's input, of one sample; None if they depend on values."""
    shape = shape_for_one_sample(graph, source)
    if shape is not None and linear.dims and len(shape) == linear.dims + 1:
        shape = [1, *shape]  # PyTorch takes an image without a batch too
    return shape


def _shape(linear: LinearMap) -> LayerShape:
    return LayerShape(
        linear.weight_shape,
        linear.stride,
        linear.padding_of_sides,
        linear.dilation,
        linear.output_padding,
        linear.groups,
        linear.transposed,
    )


def _half(linear: LinearMap) -> LayerShape | None:
    """The layer with half of its output and input channels; None if they cannot be halved."""
    whole, (first, second, *kernel) = _shape(linear), linear.weight_shape
    if linear.is_depthwise and second == 1 and linear.groups % 2 == 0:
        return dataclasses.replace(whole, weight=(first // 2, second, *kernel), groups=linear.groups // 2)
    if linear.groups == 1 and first % 2 == 0 and second % 2 == 0:
        return dataclasses.replace(whole, weight=(first // 2, second // 2, *kernel))
    return None
