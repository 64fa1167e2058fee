"""Splitting channels leaves every network's outputs as they were, and makes the largest weights smaller."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold_batchnorm import Layer, graph_of
from test_linear_maps import convolutions, linear_layers
from torch import nn

from roundwise.graph.analysis.layers import find_layers
from roundwise.methods.ranges import MinMax
from roundwise.methods.rewrites import OutlierChannelSplitting
from roundwise.methods.rewrites.outlier_channel_splitting import split
from roundwise.numerics.grid import Codebook, PerTensor
from roundwise.statistics import Nothing

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
examples = settings(max_examples=100, deadline=None, derandomize=True)
rewrites = st.builds(
    OutlierChannelSplitting, ratio=st.sampled_from([0.02, 0.3, 1.0]), bits=st.sampled_from([None, 2, 4, 8])
)


@examples
@given(st.one_of(linear_layers(), convolutions()), rewrites)
def test_outputs_stay_and_the_largest_weights_are_halved_unless_grouped(drawn, rewrite):
    module, inputs = drawn
    model = Layer(module)
    graph = graph_of(model, inputs)
    after = rewrite.apply(graph)
    with torch.no_grad():
        torch.testing.assert_close(after.module()(inputs), model(inputs), rtol=1e-9, atol=1e-9)
    (before,), (layer,) = find_layers(graph), find_layers(after)
    if getattr(module, "groups", 1) > 1:
        assert layer.map.weight_shape == before.map.weight_shape
        return
    channels = before.map.weight_shape[0 if before.map.transposed else 1]
    added = math.ceil(rewrite.ratio * channels)
    assert layer.map.weight_shape[0 if before.map.transposed else 1] == channels + added
    if rewrite.bits is None and added == channels:
        # As many splits as channels: the largest of all is halved at least once.
        weight, halved = before.map.to_matrix(graph.constants["weight"]), after.constants["weight"]
        assert halved.abs().max() < weight.abs().max()


def test_the_channel_with_the_largest_weight_is_split_again_and_again():
    channels = torch.tensor([[1.0, -0.5], [-8.0, 2.0], [3.0, 0.0]])
    parts, index = split(channels, 3)
    assert index.tolist() == [0, 1, 2, 1, 1, 1]  # 8 → 4, 4; and both of these are larger than 3
    assert parts.tolist() == [[1, -0.5], [-2, 0.5], [3, 0], [-2, 0.5], [-2, 0.5], [-2, 0.5]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_parts_half_a_step_apart_round_together_as_the_whole_does(bits):
    torch.manual_seed(0)
    weight = torch.randn(6, 20, dtype=torch.float64)
    module = nn.Linear(20, 6, dtype=torch.float64)
    module.weight = nn.Parameter(weight)
    graph = graph_of(Layer(module), torch.randn(2, 20, dtype=torch.float64))

    def rounded(bits_for):
        after = OutlierChannelSplitting(0.2, bits_for).apply(graph)
        parts, index = after.constants["weight"], after.constants["weight_channels"]
        grid = MinMax().estimate(parts[None], Codebook(bits), PerTensor(), Nothing(), "")
        codes = torch.zeros_like(weight).index_add(1, index, grid.quantize(parts[None])[0].double())
        whole = (weight / float(grid.scale)).round()
        once = [channel for channel in range(20) if (index == channel).sum() == 2]
        return codes[:, once], whole[:, once]

    codes, whole = rounded(bits)
    assert codes.numel()
    assert (codes == whole).double().mean() > 0.98  # but for a weight at the very end of the grid
    codes, whole = rounded(None)
    assert (codes == whole).double().mean() < 0.9


def test_a_weight_that_something_else_reads_and_a_zero_weight_stay():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.zero = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.zeros(4, 4))

        def forward(self, x):
            x = torch.ops.aten.linear.default(x, self.weight) + self.weight
            return torch.ops.aten.linear.default(x, self.zero)

    graph = graph_of(Tied(), torch.randn(4, 4))
    assert str(OutlierChannelSplitting().apply(graph).operations) == str(graph.operations)
