"""Times of layers with fewer channels follow from two measurements."""

import math

import pytest
import torch
from torch import nn

from roundwise.engine.latencies import Latencies, LayerSeconds
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.transforms.normalize import normalize


class Times:
    """Times as (1) has them: 3 ms in any case, and 1 µs for each weight."""

    def __init__(self, fixed=3e-3):
        self.fixed, self.asked = fixed, []

    def seconds(self, inputs, layers):
        self.asked.append((tuple(inputs), layers))
        return sum(self.fixed + 1e-6 * math.prod(layer.weight) for layer in layers)


def layer_of(module, *shape):
    graph = normalize(TorchExport().graph(module.eval(), (torch.randn(2, *shape),), {}))
    return graph, find_layers(graph)[0]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Sequential(nn.Linear(6, 4)), (6,)),
        (nn.Sequential(nn.Conv2d(4, 6, 3)), (4, 8, 8)),
        (nn.Sequential(nn.Conv2d(6, 6, 3, groups=6)), (6, 8, 8)),
        (nn.Sequential(nn.ConvTranspose2d(4, 6, 3)), (4, 8, 8)),
    ],
    ids=["linear", "convolution", "depthwise", "transposed"],
)
def test_what_does_not_fall_with_the_channels_is_found(module, shape):
    times = Times()
    graph, layer = layer_of(module, *shape)
    seconds = Latencies(times).of_layer(graph, layer)
    assert seconds.fixed == pytest.approx(3e-3)
    assert seconds.by_channels == pytest.approx(1e-6 * module[0].weight.numel())
    (whole, _), (half, _) = times.asked
    assert half == (1, shape[0] // 2, *shape[1:])
    assert whole == (1, *shape)


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv1d(4, 6, 3, groups=2), nn.Conv1d(3, 3, 3, groups=3)])
def test_layers_that_cannot_be_halved_fall_with_their_channels(layer):
    graph, found = layer_of(nn.Sequential(layer), *((5,) if isinstance(layer, nn.Linear) else (layer.in_channels, 9)))
    seconds = Latencies(Times()).of_layer(graph, found)
    assert seconds.fixed == 0
    assert seconds.whole == pytest.approx(3e-3 + 1e-6 * layer.weight.numel())


def test_each_call_of_a_layer_counts():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    graph, layer = layer_of(Twice(), 4, 12)
    assert Latencies(Times()).of_layer(graph, layer).whole == pytest.approx(2 * (3e-3 + 48e-6))


def test_a_time_that_is_not_measured_is_no_number():
    assert math.isnan(LayerSeconds().whole)


def test_a_smaller_layer_that_takes_longer_gives_no_negative_time():
    class Odd(Times):
        def seconds(self, inputs, layers):
            return 1.0 if len(self.asked) else self.asked.append(inputs) or 0.5

    graph, layer = layer_of(nn.Sequential(nn.Conv1d(4, 6, 3)), 4, 9)
    assert Latencies(Odd()).of_layer(graph, layer) == LayerSeconds(0.5, 0.0)
