"""Equalization leaves every network's outputs as they were, and makes ranges alike wherever it may."""

import math
import re

import pytest
import torch
from facts import has, raises
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import quantizing
from test_fold_batchnorm import Layer, graph_of, sequential
from torch import nn

import roundwise as rw
from roundwise.engine.rewriting import apply_rewrites
from roundwise.engine.rewriting import folded as rewrite
from roundwise.errors import RecipeError
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.activations import find_activations
from roundwise.graph.analysis.layers import find_layers, linear_map
from roundwise.methods.rewrites import CrossLayerEqualization
from roundwise.methods.rewrites.cross_layer_equalization import pairs

aten = torch.ops.aten
examples = settings(max_examples=60, deadline=None, derandomize=True)
TIGHT = CrossLayerEqualization(tolerance=1e-6, max_iterations=5000)


class Call(nn.Module):
    """An operation, as a captured graph has it."""

    def __init__(self, operation, *args):
        super().__init__()
        self.operation, self.args = operation, args

    def forward(self, x):
        return self.operation(x, *self.args)


class Same(nn.Module):
    def forward(self, x):
        return x


class PReLU(nn.Module):
    def __init__(self, slopes):
        super().__init__()
        self.slopes = nn.Parameter(torch.randn(slopes, dtype=torch.float64))

    def forward(self, x):
        return aten.prelu.default(x, self.slopes)


class Extremes(nn.Module):
    """Limits that are tensors."""

    def __init__(self, channels):
        super().__init__()
        self.low = nn.Parameter(-torch.rand(1, dtype=torch.float64))
        self.high = nn.Parameter(torch.rand(channels, 1, 1, dtype=torch.float64))

    def forward(self, x):
        return aten.minimum.default(aten.maximum.default(x, self.low), self.high)


FUNCTIONS = {
    "none": lambda channels: Same(),
    "relu": lambda channels: Call(aten.relu.default),
    "leaky": lambda channels: Call(aten.leaky_relu.default, -0.3),
    "prelu": lambda channels: PReLU(1),
    "prelu per channel": PReLU,
    "relu6": lambda channels: Call(aten.hardtanh.default, 0.0, 0.6),
    "hardtanh": lambda channels: Call(aten.hardtanh.default, -0.1, 0.5),
    "from below": lambda channels: Call(aten.clamp_min.default, 0.2),
    "from above": lambda channels: Call(aten.clamp.default, None, 0.3),
    "extremes": Extremes,
}
MOVES = {
    "none": Same,
    "max": lambda: Call(aten.max_pool2d.default, [2, 2], [1, 1]),
    "average": lambda: Call(aten.avg_pool2d.default, [2, 2], [1, 1], [1, 1]),
    "zeros": lambda: Call(aten.pad.default, [1, 0, 0, 2]),
    "mirror": lambda: Call(aten.pad.default, [1, 0, 0, 1], "reflect"),
    "nearest": lambda: Call(aten.upsample_nearest2d.vec, None, [2.0, 2.0]),
}


def uneven(module):
    """Ranges of the channels that differ by orders of magnitude."""
    with torch.no_grad():
        module.weight *= torch.logspace(-2, 2, module.weight.shape[0])[torch.randperm(module.weight.shape[0])].reshape(
            -1, *[1] * (module.weight.dim() - 1)
        )
    return module


@st.composite
def chains(draw):
    """A chain of layers of all kinds that can be equalized from end to end, and an input."""
    torch.manual_seed(draw(st.integers(0, 99)))
    channels, parts, size = draw(st.sampled_from([2, 4, 6])), [], 5
    inputs = torch.randn(2, channels, size, size, dtype=torch.float64)
    count = draw(st.integers(2, 4))
    for _ in range(count - 1):
        kind = draw(st.sampled_from(["plain", "grouped", "depthwise", "transposed", "transposed and grouped"]))
        groups = {"plain": 1, "transposed": 1, "depthwise": channels}.get(kind, 2)
        outputs = channels if kind == "depthwise" else draw(st.sampled_from([2, 4, 6]))
        module = nn.ConvTranspose2d if "transposed" in kind else nn.Conv2d
        padding = 1 if module is nn.Conv2d else 0
        layer = module(channels, outputs, 3, 1, padding, groups=groups, bias=draw(st.booleans()), dtype=torch.float64)
        channels = outputs
        between = [
            FUNCTIONS[draw(st.sampled_from(list(FUNCTIONS)))](channels),
            MOVES[draw(st.sampled_from(list(MOVES)))](),
        ]
        parts += [uneven(layer), *(between if draw(st.booleans()) else between[::-1])]
    size = sequential(*parts)(inputs).shape[2:]
    match draw(st.sampled_from(["convolution", "mean", "mean kept", "flatten", "view"])):
        case "convolution":
            last = [nn.Conv2d(channels, 3, 1, dtype=torch.float64)]
        case "mean":
            last = [Call(aten.mean.dim, [-1, 2]), nn.Linear(channels, 3, dtype=torch.float64)]
        case "mean kept":
            last = [Call(aten.mean.dim, [2, 3], True), nn.Conv2d(channels, 3, 1, dtype=torch.float64)]
        case "flatten":
            last = [Call(aten.flatten.using_ints, 1), nn.Linear(channels * math.prod(size), 3, dtype=torch.float64)]
        case "view":
            flat = channels * math.prod(size)
            last = [Call(aten.view.default, [2, flat]), FUNCTIONS["relu6"](0), nn.Linear(flat, 3, dtype=torch.float64)]
    return sequential(*parts, *last), inputs, count


def ranges(graph, pair):
    """r₁ and r₂ by the definition: from the weights as the operations take them."""
    largest = []
    for call, inward in ((pair.first, False), (pair.second, True)):
        weight, layer = graph.constants[str(call.args[1].target)].abs(), linear_map(graph, call)
        if layer.transposed is not inward:  # groups stand in the other dimension
            groups, per = layer.groups, weight.shape[1]
            of_groups = weight.reshape(groups, -1, per, *weight.shape[2:]).transpose(1, 2).flatten(2).amax(2)
            largest.append(of_groups.flatten().reshape(pair.channels, -1).amax(1))
        else:
            largest.append(weight.flatten(1).amax(1))
    return largest


@examples
@given(chains())
def test_outputs_stay_and_ranges_are_equal_all_along_a_chain(drawn):
    model, inputs, count = drawn
    graph = graph_of(model, inputs)
    assert len(pairs(graph)) == count - 1
    after = TIGHT.apply(graph)
    with torch.no_grad():
        torch.testing.assert_close(after.module()(inputs), model(inputs), rtol=1e-8, atol=1e-8)
    for pair in pairs(after):
        r1, r2 = ranges(after, pair)
        torch.testing.assert_close(r1, r2, rtol=1e-5, atol=0)
    again = TIGHT.apply(after)
    assert str(again.operations) == str(after.operations)
    assert all(again.constants[name] is value for name, value in after.constants.items())


@examples
@given(chains(), st.sampled_from(["keep", "relu"]))
def test_keeping_clamps_is_exact_and_replacing_them_leaves_none_from_zero_up(drawn, relu6):
    model, inputs, _ = drawn
    graph = graph_of(model, inputs)
    after = CrossLayerEqualization(relu6).apply(graph)
    functions = [function for pair in pairs(graph, relu6) for function, _ in pair.functions]
    equalized = {id(function) for function in functions if "hardtanh" in str(function.target)}
    if relu6 == "keep" or not equalized:
        assert not (relu6 == "keep" and equalized)
        with torch.no_grad():
            torch.testing.assert_close(after.module()(inputs), model(inputs), rtol=1e-8, atol=1e-8)
    kept = [str(node.target) for node in after.operations.nodes if "hardtanh" in str(node.target)]
    before = [str(node.target) for node in graph.operations.nodes if "hardtanh" in str(node.target)]
    assert len(kept) == len(before) - len(equalized)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_scale_is_that_of_the_paper_and_the_product_of_both_ranges_is_least(dtype):
    torch.manual_seed(0)
    model = sequential(uneven(nn.Linear(5, 8)), Call(aten.relu.default), nn.Linear(8, 4)).to(dtype)
    graph = graph_of(model, torch.randn(2, 5, dtype=dtype))
    (pair,) = pairs(graph)
    r1, r2 = ranges(graph, pair)
    after = CrossLayerEqualization().apply(graph)
    scale = (r1 * r2).sqrt() / r2
    torch.testing.assert_close(after.constants["0.weight"], graph.constants["0.weight"] / scale[:, None])
    torch.testing.assert_close(after.constants["0.bias"], graph.constants["0.bias"] / scale)
    torch.testing.assert_close(after.constants["2.weight"], graph.constants["2.weight"] * scale)
    assert after.constants["2.bias"] is graph.constants["2.bias"]
    new = [r.max() for r in ranges(after, pair)]
    torch.testing.assert_close(new[0] * new[1], (r1 * r2).max())
    for _ in range(50):
        other = torch.randn(8).exp()
        assert (r1 / other).max() * (r2 * other).max() >= (r1 * r2).max() * (1 - 1e-6)


def test_channels_without_range_on_either_side_keep_their_scale():
    torch.manual_seed(0)
    first, second = uneven(nn.Linear(3, 5)), nn.Linear(5, 2)
    with torch.no_grad():
        first.weight[1], second.weight[:, 2], second.weight[:, 3] = 0, 0, 1e-30
    model = sequential(first, Call(aten.relu.default), second)
    inputs = torch.randn(4, 3)
    after = CrossLayerEqualization().apply(graph_of(model, inputs))
    scale = first.bias / after.constants["0.bias"]
    assert (scale == 1).tolist() == [False, True, True, True, False]
    torch.testing.assert_close(after.module()(inputs), model(inputs))
    assert all(value.isfinite().all() for value in after.constants.values())


def test_a_negligible_channel_does_not_spoil_the_grid_of_the_next_layer():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 5), nn.Linear(5, 2)
    with torch.no_grad():
        first.weight[1], second.weight[:, 1] = 1e-12, 50
    model = sequential(first, Call(aten.relu.default), second)
    inputs = torch.randn(4, 3)
    after = CrossLayerEqualization().apply(graph_of(model, inputs))
    assert after.constants["2.weight"].abs().max() < 1
    torch.testing.assert_close(after.module()(inputs), model(inputs))


class Network(nn.Module):
    """Two convolutions with something between them that a test chooses."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b, self.between = Layer(nn.Conv2d(4, 4, 1)), Layer(nn.Conv2d(4, 4, 1)), between

    def forward(self, x):
        return self.between(self, x)


STOPS = {
    "addition": lambda net, x: net.b(net.a(x) + x),
    "concatenation": lambda net, x: net.b(aten.cat.default([net.a(x)[:, :2], x[:, :2]], 1)),
    "another reader": lambda net, x: net.b(y := net.a(x)) + y,
    "an output": lambda net, x: (y := aten.relu.default(net.a(x)), net.b(y)),
    "a shared weight": lambda net, x: net.a(net.a(x)),
    "a weight read by others": lambda net, x: net.b(net.a(x)) + net.a.weight.sum(),
    "a second weight read by others": lambda net, x: net.b(net.a(x)) + net.b.weight.sum(),
    "a bias read by others": lambda net, x: net.b(net.a(x)) + net.a.bias.sum(),
    "another function": lambda net, x: net.b(aten.gelu.default(net.a(x))),
    "padding with ones": lambda net, x: net.b(aten.constant_pad_nd.default(net.a(x), [1, 1], 1.0)),
    "padding channels": lambda net, x: net.b(aten.constant_pad_nd.default(net.a(x), [0, 0, 0, 0, 1, -1])),
    "exchanged channels": lambda net, x: net.b(aten.transpose.int(net.a(x), 1, 2)),
    "a mean over channels": lambda net, x: net.b(aten.mean.dim(net.a(x), [1], True).expand(-1, 4, -1, -1)),
    "reshaped channels": lambda net, x: net.b(aten.view.default(net.a(x), [4, 4, 2, 4])),
    "a limit that is computed": lambda net, x: net.b(aten.minimum.default(net.a(x), x)),
    "no second layer": lambda net, x: net.a(x),
}


@pytest.mark.parametrize("between", STOPS.values(), ids=STOPS)
def test_nothing_is_equalized_across(between):
    torch.manual_seed(0)
    model = Network(between)
    graph = graph_of(model, torch.randn(2, 4, 4, 4))
    assert pairs(graph) == []
    after = CrossLayerEqualization().apply(graph)
    assert str(after.operations) == str(graph.operations)
    assert all(after.constants[name] is value for name, value in graph.constants.items())


def test_linear_layers_on_sequences_and_convolutions_without_batch_are_pairs():
    layers = [nn.Linear(3, 6), nn.Linear(6, 2)], [nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)]
    for (first, second), inputs in zip(layers, (torch.randn(2, 7, 3), torch.randn(3, 4, 4)), strict=True):
        model = sequential(uneven(first), Call(aten.hardtanh.default, 0.0, 6.0), second)
        graph = graph_of(model, inputs)
        assert len(pairs(graph)) == 1
        torch.testing.assert_close(CrossLayerEqualization().apply(graph).module()(inputs), model(inputs))


def mobile():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1)]
    parts = [part for layer in layers for part in (uneven(layer), nn.BatchNorm2d(layer.out_channels), nn.ReLU6())]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()


SAMPLES = torch.randn(24, 3, 9, 9, generator=torch.Generator().manual_seed(1)) * 3


def test_a_clamp_with_limits_for_each_channel_is_fused_with_its_layer():
    graph = rewrite(TorchExport().graph(mobile(), (SAMPLES[:2],), {}))
    (after, notes) = apply_rewrites(graph, (CrossLayerEqualization(),), (SAMPLES[:2],), {})
    assert len(notes) == 1
    assert has(notes[0], "cross-layer-equalization", 3)
    layers = find_layers(after)
    assert [layer.nonlinearity and layer.nonlinearity.limits for layer in layers] == [(0.0, math.inf)] * 3 + [None]
    quantized = [node for group in find_activations(after, {layer.node for layer in layers}) for node in group.nodes]
    names = [str(node.target).removeprefix("aten.") for node in quantized if node.op == "call_function"]
    assert names[:3] == ["minimum.default"] * 3


def test_what_is_not_exact_says_in_the_report_how_far_outputs_moved():
    recipe = quantizing(rw.Weights(bits=8), rw.rounding.Nearest())
    recipe = recipe.with_settings(rw.Rewrite, methods=(CrossLayerEqualization("relu"),), undo_harmful=False)
    (note,) = rw.quantize(mobile(), SAMPLES, recipe).report.notes
    exactly = recipe.with_settings(rw.Rewrite, methods=(CrossLayerEqualization(),))
    (exact,) = rw.quantize(mobile(), SAMPLES, exactly).report.notes
    assert has(note, "cross-layer-equalization", 3)
    assert len(re.findall(r"\d+", note)) > len(re.findall(r"\d+", exact))
    plain = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3)).eval()
    (note,) = rw.quantize(plain, torch.randn(8, 3), recipe).report.notes
    assert has(note, "cross-layer-equalization")
    assert not re.search(r"\d", note)


def test_an_equalized_network_is_more_accurate_on_grids_per_tensor_and_exports(tmp_path):
    weights = rw.Weights(bits=8, granularity=rw.PerTensor(), ranges=rw.ranges.MinMax())
    plain, equalized = (
        rw.quantize(mobile(), SAMPLES, quantizing(weights, rw.rounding.Nearest(), rewrites=rewrites))
        for rewrites in ((), (CrossLayerEqualization(),))
    )
    assert equalized.report.output_error < plain.report.output_error / 10
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    result = rw.export(equalized, tmp_path / "m.onnx")  # compares, and raises where outputs differ
    assert result.relative_difference < 1e-5
    session = runtime.InferenceSession(str(result.path))
    (outputs,) = session.run(None, {session.get_inputs()[0].name: SAMPLES[:7].numpy()})
    torch.testing.assert_close(torch.from_numpy(outputs), equalized(SAMPLES[:7]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("settings", [{"tolerance": 0.0}, {"max_iterations": 0}, {"relu6": "clip"}])
def test_settings_out_of_range_are_refused(settings):
    with raises(RecipeError, *(f"{name}={value!r}" for name, value in settings.items())):
        CrossLayerEqualization(**settings)
