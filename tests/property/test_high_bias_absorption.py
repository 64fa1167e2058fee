"""Absorption: nothing changes where channels are always above what is absorbed, and it says where it may."""

import re

import pytest
import torch
from facts import has, raises
from test_fold_batchnorm import Norm, sequential
from test_fold_batchnorm import graph_of as traced
from torch import nn

from roundwise.engine.rewriting import apply_rewrites
from roundwise.errors import RecipeError
from roundwise.graph.transforms.fold_batchnorm import fold_batchnorm
from roundwise.methods.rewrites import CrossLayerEqualization, HighBiasAbsorption

aten = torch.ops.aten
SHIFTS = torch.tensor([5.0, 4.0, -1.0, 9.0], dtype=torch.float64)


def network(function, second=None):
    """A layer whose outputs lie within 1.74 deviations of batch-norm's means, far above 0 but for one channel."""
    torch.manual_seed(0)
    first, norm = nn.Conv2d(1, 4, 1, bias=False), Norm(4, shift=False)
    with torch.no_grad():
        norm.variance.copy_(first.weight.flatten().square())
        norm.weight.fill_(1.0)
        norm.bias.copy_(SHIFTS)
    return sequential(first, norm, *function, second or nn.Conv2d(4, 3, 1)).double()


def graph_of(model, inputs):
    return fold_batchnorm(traced(model, inputs))


def samples():
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(3, 1, 6, 6, generator=generator, dtype=torch.float64) * 2 - 1) * 3**0.5  # of deviation 1


class Call(nn.Module):
    """An operation, as a captured graph has it."""

    def __init__(self, operation, *args):
        super().__init__()
        self.operation, self.args = operation, args

    def forward(self, x):
        return self.operation(x, *self.args)


RELU = Call(aten.relu.default)
FUNCTIONS = {
    "relu": [RELU],
    "leaky": [Call(aten.leaky_relu.default, 0.1)],
    "relu6": [Call(aten.hardtanh.default, 0.0, 6.0)],
    "a low ceiling": [Call(aten.hardtanh.default, 0.0, 4.5)],
    "a pool after it": [RELU, Call(aten.max_pool2d.default, [2, 2])],
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("equalized", [False, True], ids=["", "equalized"])
@pytest.mark.parametrize("bias", [True, False], ids=["", "no bias"])
def test_outputs_stay_where_channels_are_always_above(function, equalized, bias):
    model, inputs = network(function, nn.Conv2d(4, 3, 2, bias=bias)), samples()
    graph = graph_of(model, inputs)
    if equalized:
        graph = CrossLayerEqualization().apply(graph)
    before = {name: value.clone() for name, value in graph.constants.items()}
    after = HighBiasAbsorption().apply(graph)
    with torch.no_grad():
        torch.testing.assert_close(after.module()(inputs), model(inputs), rtol=1e-9, atol=1e-9)
    assert before.keys() == graph.constants.keys()
    assert all(torch.equal(graph.constants[name], value) for name, value in before.items())
    taken = graph.constants["0.bias"] - after.constants["0.bias"]
    assert (taken > 0).tolist() == [True, True, False, True]
    torch.testing.assert_close(after.moments["0.weight"].mean, graph.moments["0.weight"].mean - taken)
    again = HighBiasAbsorption().apply(after).constants["0.bias"]
    torch.testing.assert_close(again, after.constants["0.bias"])  # no more to take


def test_it_says_so_where_no_relu_is_there_to_absorb_below():
    graph = graph_of(network([Call(aten.sigmoid.default)]), samples())
    assert has(HighBiasAbsorption().note(graph), "ReLU")


def test_the_fewer_deviations_the_more_is_absorbed():
    graph = graph_of(network([RELU]), samples())
    biases = [HighBiasAbsorption(n).apply(graph).constants["0.bias"].sum() for n in (3.0, 1.0, 0.0)]
    assert biases == sorted(biases, reverse=True)
    moments = graph.moments["0.weight"]
    expected = graph.constants["0.bias"] - (SHIFTS - 3 * moments.std).clamp(min=0)
    torch.testing.assert_close(HighBiasAbsorption().apply(graph).constants["0.bias"], expected)


def test_zeros_around_change_borders_alone_and_such_pairs_can_be_left():
    model, inputs = network([RELU], nn.Conv2d(4, 3, 3, padding=1)), samples()
    graph = graph_of(model, inputs)
    with torch.no_grad():
        wanted, given = model(inputs), HighBiasAbsorption().apply(graph).module()(inputs)
    torch.testing.assert_close(given[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1])
    assert not torch.allclose(given, wanted, rtol=0.01)
    assert has(HighBiasAbsorption().note(graph), 3, 1)
    left = HighBiasAbsorption(across_padding=False)
    assert str(left.apply(graph).operations) == str(graph.operations)
    assert has(left.note(graph), 0)
    assert not has(left.note(graph), 3)


@pytest.mark.parametrize(
    "model",
    [
        network([]),
        network([Call(aten.sigmoid.default)]),
        network([Call(aten.hardtanh.default, 0.5, 20.0)]),
        network([RELU], nn.ConvTranspose2d(4, 3, 3, 2)),
        network([RELU, Call(aten.avg_pool2d.default, [2, 2], [2, 2], [0, 0], False, True, 1)]),
        sequential(nn.Conv2d(1, 4, 1), RELU, nn.Conv2d(4, 2, 1)).double(),
    ],
    ids=["no function", "another function", "a floor above 0", "a transposed layer", "sums", "no batch-norm"],
)
def test_what_it_cannot_shift_it_leaves(model):
    inputs = samples()
    graph = graph_of(model, inputs)
    rewrite = HighBiasAbsorption()
    after, notes = apply_rewrites(graph, (rewrite,), (inputs,), {})
    assert str(after.operations) == str(graph.operations)
    assert all(torch.equal(value, graph.constants[name]) for name, value in after.constants.items())
    (note,) = notes
    assert has(note, "high-bias-absorption")
    assert not has(note, 1)


def test_the_report_tells_how_far_outputs_moved():
    model, inputs = network([RELU], nn.Conv2d(4, 3, 3, padding=1)), samples()
    graph = graph_of(model, inputs)
    (measured,), (not_measured,) = (
        apply_rewrites(graph, (HighBiasAbsorption(),), (inputs,), {}, real=real)[1] for real in (True, False)
    )
    assert measured != not_measured
    assert len(re.findall(r"\d+", measured)) > len(re.findall(r"\d+", not_measured))


@pytest.mark.parametrize("deviations", [-1.0, float("nan")])
def test_deviations_that_mean_nothing_are_refused(deviations):
    with raises(RecipeError, f"deviations={deviations}"):
        HighBiasAbsorption(deviations)


def test_without_batch_norm_samples_show_what_channels_are_above():
    torch.manual_seed(0)
    first, inputs = nn.Conv2d(1, 4, 1), samples()
    with torch.no_grad():
        first.bias.copy_(SHIFTS)
    graph = graph_of(sequential(first, RELU, nn.Conv2d(4, 3, 1)).double(), inputs)
    rewrite = HighBiasAbsorption(deviations=2.0, moments="data")  # a uniform distribution reaches to 1.74
    after, (note,) = apply_rewrites(graph, (rewrite,), (inputs,), {})
    with torch.no_grad():
        torch.testing.assert_close(after.module()(inputs), graph.module()(inputs), rtol=1e-9, atol=1e-9)
        outputs = torch.nn.functional.conv2d(inputs, graph.constants["0.weight"], graph.constants["0.bias"])
    mean, std = outputs.mean((0, 2, 3)), outputs.std((0, 2, 3), correction=0)
    taken = graph.constants["0.bias"] - after.constants["0.bias"]
    torch.testing.assert_close(taken, (mean - 2 * std).clamp(min=0))
    torch.testing.assert_close(after.moments["0.weight"].mean, mean - taken)
    assert has(note, "high-bias-absorption", 3, 1)
    assert not graph.moments


def test_samples_that_are_not_there_cannot_be_measured():
    graph = graph_of(network([RELU]), samples())
    with raises(RecipeError, "HighBiasAbsorption", "moments='data'"):
        apply_rewrites(graph, (HighBiasAbsorption(moments="data"),), (samples(),), {}, real=False)


def test_a_layer_on_a_single_vector_has_moments_too():
    inputs = torch.randn(3).double()
    graph = traced(sequential(nn.Linear(3, 4), RELU, nn.Linear(4, 2)).double(), inputs)
    after, _ = apply_rewrites(graph, (HighBiasAbsorption(deviations=0.0, moments="data"),), (inputs,), {})
    assert {len(moments.mean) for moments in after.moments.values()} == {4, 2}
