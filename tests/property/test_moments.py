"""What batch-norm tells of activations: clipped normals against integration, networks against samples of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fold_batchnorm import Layer, Norm, sequential
from test_fold_batchnorm import graph_of as traced
from torch import nn

from roundwise.engine.rewriting import folded as normal_form
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.analysis.moments import Spread, clipped_normal, expected_columns, propagate
from roundwise.graph.graph import ChannelMoments
from roundwise.graph.transforms.fold_batchnorm import fold_batchnorm
from roundwise.methods.rewrites import CrossLayerEqualization, OutlierChannelSplitting

aten = torch.ops.aten
examples = settings(max_examples=100, deadline=None, derandomize=True)
QUANTILES = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)

ends = st.one_of(st.floats(-8, 8), st.sampled_from([-math.inf, math.inf]))


def graph_of(model, inputs):
    return fold_batchnorm(traced(model, inputs))


class Call(nn.Module):
    """An operation, as a captured graph has it."""

    def __init__(self, operation, *args):
        super().__init__()
        self.operation, self.args = operation, args

    def forward(self, x):
        return self.operation(x, *self.args)


def double(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


@examples
@given(st.floats(-10, 10), st.floats(0.01, 10), ends, ends)
def test_a_clipped_normal_has_the_mean_and_deviation_of_its_quantiles(mean, std, first, second):
    low, high = min(first, second), max(first, second)
    values = (mean + std * QUANTILES).clamp(low, high)
    expected, deviation = clipped_normal(*double(mean, std, low, high))
    if math.isfinite(values.mean()):
        assert float(expected) == pytest.approx(float(values.mean()), abs=1e-4 * std + 1e-9)
        assert float(deviation) == pytest.approx(float(values.std()), abs=1e-3 * std + 1e-9)


def test_a_channel_that_does_not_vary_is_clamped_as_the_number_it_is():
    mean, std = clipped_normal(*double(7.0, 0.0, 0.0, 6.0))
    assert (float(mean), float(std)) == (6.0, 0.0)


@pytest.mark.parametrize("mean", [-1e6, -45.0, 45.0, 1e6])
def test_limits_that_are_far_away_cut_off_nothing_or_everything(mean):
    expected, std = clipped_normal(*double(mean, 1.0, 0.0, math.inf))
    assert float(expected) == max(mean, 0.0)
    assert float(std) == pytest.approx(float(mean > 0), abs=1e-3)  # of a difference of numbers of 10¹²


@examples
@given(st.floats(-3, 3), st.lists(st.tuples(st.floats(-3, 3), st.floats(0, 3)), min_size=1, max_size=4))
def test_clamps_after_clamps_are_one(mean, clamps):
    spread, values = Spread.normal(ChannelMoments(*double(mean, 1.3))), mean + 1.3 * QUANTILES
    ends = mean + 1.3 * torch.tensor([-4.0, 4.0], dtype=torch.float64)
    for low, width in clamps:
        spread = spread.clamped(low, low + width)
        values, ends = (numbers.clamp(low, low + width) for numbers in (values, ends))
    assert float(spread.mean) == pytest.approx(float(values.mean()), abs=2e-4)
    assert spread.limits(4.0) == pytest.approx(tuple(ends.tolist()))


def test_one_channel_in_two_hundred_may_reach_beyond_the_range():
    def limits(channels, share):
        means = torch.arange(channels, dtype=torch.float64)
        return Spread.normal(ChannelMoments(means, torch.ones_like(means))).limits(2.0, share)

    assert limits(200, 0.995) == limits(200, 1.0) == (-2.0, 201.0)
    assert limits(402, 0.995) == (0.0, 401.0)


class Normed(nn.Module):
    """A linear layer on normal numbers, and a batch-norm: its outputs are exactly what the batch-norm says."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer, self.norm = Layer(nn.Linear(inputs, outputs, bias=False)), Norm(outputs)
        with torch.no_grad():
            self.norm.variance.copy_(self.layer.weight.square().sum(1))
            self.norm.mean.copy_(self.layer.weight.sum(1))

    def forward(self, x):
        return self.norm(self.layer(aten.add.Tensor(x, 1.0)))


class Branches(nn.Module):
    """Clamps of several kinds, sums, channels put side by side and taken away, and a layer that reads the result."""

    def __init__(self, kind):
        super().__init__()
        self.kind, (self.left, self.right) = kind, (Normed(5, 6), Normed(5, 6))
        self.ceiling = nn.Parameter(torch.rand(1, 6) + 0.2)
        self.last = Layer(nn.Linear(6, 3))

    def forward(self, x):
        # Different inputs for the two, so that they are independent.
        left, right = self.left(aten.slice.Tensor(x, 1, 0, 5)), self.right(aten.slice.Tensor(x, 1, 5, 10))
        relu = aten.relu.default
        match self.kind:
            case "relu":
                value = relu(left)
            case "relu6":
                value = aten.hardtanh.default(left, 0.0, 6.0)
            case "hardtanh":
                value = aten.hardtanh.default(left, -0.4, 0.9)
            case "ceiling":
                value = aten.minimum.default(relu(left), self.ceiling)
            case "sum":
                value = aten.add.Tensor(left, right)
            case "sum of what is clamped":
                value = relu(aten.add.Tensor(relu(left), right))
            case "side by side":
                value = aten.cat.default([aten.slice.Tensor(left, 1, 4), aten.slice.Tensor(relu(right), 1, 0, 4)], -1)
            case "zeros beside":
                value = aten.pad.default(aten.slice.Tensor(relu(left), 1, 0, 6, 2), [1, 2])
        return self.last(value)


KINDS = ("relu", "relu6", "hardtanh", "ceiling", "sum", "sum of what is clamped", "side by side", "zeros beside")


@pytest.mark.parametrize("kind", KINDS)
def test_expected_inputs_are_the_means_over_many_samples(kind):
    torch.manual_seed(KINDS.index(kind))
    model = Branches(kind).double().eval()
    samples = torch.randn(100_000, 10, dtype=torch.float64)
    graph = graph_of(model, samples)
    last = find_layers(graph)[-1]
    columns = expected_columns(last.map, last.node, propagate(graph))
    model.last.forward = lambda values: values
    with torch.no_grad():
        seen = model(samples)
    # A sum that is clamped again is taken for normal, which it is not quite.
    tolerance = 0.06 if kind == "sum of what is clamped" else 0.02
    torch.testing.assert_close(columns[0], seen.mean(0), rtol=0, atol=tolerance)


def test_each_column_of_grouped_and_flattened_layers_has_its_channels_mean():
    torch.manual_seed(0)
    model = sequential(
        *(nn.Conv2d(3, 6, 1), Norm(6), Call(aten.relu.default)),
        *(nn.Conv2d(6, 4, 2, groups=2), Norm(4), Call(aten.flatten.using_ints, 1)),
        nn.Linear(4 * 9, 2),
    )
    graph = graph_of(model, torch.randn(2, 3, 4, 4))
    known = propagate(graph)
    _, grouped, flat = find_layers(graph)
    relu = known[grouped.input].spread.mean
    assert torch.equal(expected_columns(grouped.map, grouped.node, known), relu.repeat_interleave(4).reshape(2, 12))
    flattened = model[4].bias.detach().double().repeat_interleave(9).reshape(1, 36)
    assert torch.equal(expected_columns(flat.map, flat.node, known), flattened)


def test_folding_keeps_the_batch_norms_numbers_and_unfolded_ones_speak_for_themselves():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.twice, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
            self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)])

        def forward(self, x):
            x = self.norms[0](self.one(x)).relu()
            x = self.norms[1](self.twice(self.norms[1](self.twice(x)).relu()))
            return self.last(self.norms[2](nn.functional.silu(x)).relu())

    net = Net().eval()
    for norm in net.norms:
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.weight)
        nn.init.uniform_(norm.running_var, 0.1, 2.0)
    graph = normal_form(TorchExport().graph(net, (torch.randn(2, 3, 5, 5),), {}))
    assert list(graph.moments) == ["one.weight"]  # the second is two calls' at once, and so none's
    norm, moments = net.norms[0], graph.moments["one.weight"]
    variance = norm.running_var.double()
    assert torch.equal(moments.mean, norm.bias.double())
    expected = norm.weight.double().abs() * (variance / (variance + norm.eps)).sqrt()
    torch.testing.assert_close(moments.std, expected)
    known, last = propagate(graph), find_layers(graph)[-1]
    means = [known[node].spread.mean for node in graph.operations.nodes if "batch_norm" in str(node.target)]
    assert torch.equal(means[0], net.norms[2].bias.double())
    assert expected_columns(last.map, last.node, known).shape == (1, 4)


def test_what_nothing_tells_is_not_guessed():
    relu, sigmoid = Call(aten.relu.default), Call(aten.sigmoid.default)
    model = sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), Norm(4), sigmoid, nn.Linear(4, 2))
    graph = graph_of(model, torch.randn(3, 4))
    known = propagate(graph)
    for layer in find_layers(graph):
        with pytest.raises(LookupError):
            expected_columns(layer.map, layer.node, known)


@pytest.mark.parametrize(
    "rewrite", [CrossLayerEqualization(), OutlierChannelSplitting(0.5)], ids=lambda r: type(r).__name__
)
def test_rewrites_keep_expected_outputs(rewrite):
    torch.manual_seed(1)
    relu6, relu = Call(aten.hardtanh.default, 0.0, 1.0), Call(aten.relu.default)
    model = sequential(nn.Conv2d(3, 4, 1), Norm(4), relu6, nn.Conv2d(4, 4, 3), Norm(4), relu, nn.Conv2d(4, 2, 1))
    model.double()
    with torch.no_grad():
        model[0].weight[2] *= 30
    graph = graph_of(model, torch.randn(2, 3, 5, 5, dtype=torch.float64))

    def output(graph):
        last = find_layers(graph)[-1]
        columns = expected_columns(last.map, last.node, propagate(graph))
        return torch.einsum("grc,gc->r", last.map.to_matrix(graph.constants[last.weight]), columns)

    after = rewrite.apply(graph)
    torch.testing.assert_close(output(after), output(graph))
    equalized = isinstance(rewrite, CrossLayerEqualization)
    assert equalized != torch.equal(after.moments["3.weight"].mean, graph.moments["3.weight"].mean)


def test_nothing_is_known_of_the_parts_of_a_split():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            left, right = self.norm(self.first(x)).chunk(2, 1)
            return self.last(left * right)

    graph = normal_form(TorchExport().graph(Net().eval(), (torch.randn(2, 3, 5, 5),), {}))
    assert list(propagate(graph)) == [find_layers(graph)[0].node]
