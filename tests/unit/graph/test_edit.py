"""The primitives that change a graph: who reads what afterwards, and what becomes of moments."""

import weakref

import pytest
import torch
from torch import nn

from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph import edit
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.graph import ChannelMoments
from roundwise.graph.matrix import LinearMap
from roundwise.graph.transforms.normalize import normalize

aten = torch.ops.aten


def conv_norm_conv(form=rewrite, bias=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    nn.init.normal_(model[1].bias)
    samples = torch.randn(3, 3, 6, 6)
    return form(TorchExport().graph(model.eval(), (samples,), {})), samples


def node_of(graph, part):
    return next(node for node in graph.operations.nodes if part in str(node.target) and node.op == "call_function")


def test_what_is_inserted_has_a_value_with_the_batch_still_dynamic():
    graph, samples = conv_norm_conv()
    expected = graph.module()(samples)
    relu = node_of(graph, "relu")
    before = edit.insert_before(graph, relu, aten.neg.default, relu.args[0])
    edit.reroute(relu.args[0], before, [relu])
    after = edit.insert_after(graph, before, aten.neg.default)
    assert after.args == (before,)
    assert relu.args == (after,)
    assert isinstance(after.meta["val"].shape[0], torch.SymInt)
    torch.testing.assert_close(graph.module()(samples), expected)
    edit.bypass(graph, after)
    edit.bypass(graph, before)
    assert relu.args[0].target is aten.conv2d.default
    torch.testing.assert_close(graph.module()(samples), expected)


def test_an_insertion_is_read_by_the_readers_that_were_there():
    graph, samples = conv_norm_conv()
    expected = graph.module()(samples)
    edit.insert_after(graph, node_of(graph, "relu"), aten.mul.Tensor, 2.0)
    torch.testing.assert_close(
        graph.module()(samples) - graph.constants["3.bias"][:, None, None],
        2 * (expected - graph.constants["3.bias"][:, None, None]),
    )


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_scaled_and_shifted_with_their_moments(bias):
    graph, _ = conv_norm_conv(bias=bias)
    calls = [node for node in graph.operations.nodes if node.target is aten.conv2d.default]
    before, moments = graph.copy(), graph.moments["0.weight"]
    factor, by = torch.tensor([1.0, 2.0, 0.5, -1.0]).double(), torch.arange(4.0).double()
    layer = edit.LayerEdit(graph, calls[0])
    layer.scale_outputs(factor)
    layer.shift_outputs(by)
    layer.divide_outputs(torch.full((4,), 2.0).double())
    layer.store()
    weight, constants = graph.constants["0.weight"], before.constants
    torch.testing.assert_close(weight, constants["0.weight"] * factor.float()[:, None, None, None] / 2)
    torch.testing.assert_close(graph.constants["0.bias"], (constants["0.bias"] * factor.float() + by.float()) / 2)
    torch.testing.assert_close(graph.moments["0.weight"].mean, (moments.mean * factor + by) / 2)
    torch.testing.assert_close(graph.moments["0.weight"].std, moments.std * factor.abs() / 2)
    assert torch.equal(before.moments["0.weight"].mean, moments.mean)


def test_what_makes_up_for_changed_inputs_leaves_outputs_and_moments():
    graph, samples = conv_norm_conv()
    graph.record_moments("3.weight", ChannelMoments(torch.zeros(2).double(), torch.ones(2).double()))
    relu, last = node_of(graph, "relu"), find_layers(graph)[-1]
    expected, scale = graph.module()(samples), torch.tensor([2.0, 4.0, 0.5, 3.0]).double()
    factor = graph.add_constant("factor", (1 / scale).float()[:, None, None])
    shifted = edit.insert_after(graph, relu, aten.sub.Tensor, 1.0)
    edit.insert_after(graph, shifted, aten.mul.Tensor, factor)
    layer = edit.LayerEdit(graph, last.node)
    layer.absorb(layer.response(torch.ones(4).double()))
    layer.scale_inputs(scale)
    layer.store()
    torch.testing.assert_close(graph.module()(samples), expected)
    assert set(graph.moments) == {"0.weight", "3.weight"}


def test_moments_end_with_any_other_change_of_what_the_layer_reads():
    graph, _ = conv_norm_conv()
    changed, rewired, twice = graph.copy(), graph.copy(), graph.copy()
    changed.constants["0.bias"] = changed.constants["0.bias"].clone()
    assert not changed.moments
    call = find_layers(rewired)[0].node
    edit.reroute(call.args[2], rewired.add_constant("other", rewired.constants["0.bias"].clone()), [call])
    assert not rewired.moments
    first = find_layers(twice)[0].node
    edit.insert_before(twice, first, aten.conv2d.default, first.args[0], first.args[1])
    assert not twice.moments
    edit.set_constant(graph, "3.weight", graph.constants["3.weight"] * 2)
    assert set(graph.copy().moments) == {"0.weight"}


def test_moments_that_ended_keep_no_weight_in_memory():
    graph, _ = conv_norm_conv()
    old = weakref.ref(graph.constants["0.weight"])
    graph.constants["0.weight"] = graph.constants["0.weight"] * 2
    assert old() is None


def test_a_layer_whose_bias_others_read_gets_its_own():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.bias = self.one.bias

        def forward(self, x):
            return self.other(self.one(x).relu())

    graph = normalize(TorchExport().graph(Shared().eval(), (torch.randn(2, 4),), {}))
    last = find_layers(graph)[-1]
    shared = graph.constants[str(last.node.args[2].target)]
    layer = edit.LayerEdit(graph, last.node)
    layer.shift_outputs(torch.ones(4).double())
    layer.store()
    assert torch.equal(graph.constants["one.bias"], shared)
    assert torch.equal(graph.constants["other.bias"], shared + 1)


def test_only_what_changed_is_stored():
    graph, _ = conv_norm_conv()
    before = dict(graph.constants)
    layer = edit.LayerEdit(graph, find_layers(graph)[0].node)
    layer.shift_outputs(torch.ones(4).double())
    layer.store()
    assert graph.constants["0.weight"] is before["0.weight"]
    layer = edit.LayerEdit(graph, find_layers(graph)[1].node)
    layer.scale_inputs(torch.ones(4).double() * 2)
    layer.store()
    assert graph.constants["3.bias"] is before["3.bias"]


def test_a_layer_that_overflows_its_dtype_says_so():
    graph, _ = conv_norm_conv()
    layer = edit.LayerEdit(graph, find_layers(graph)[0].node)
    assert layer.is_finite()
    layer.scale_outputs(torch.full((4,), 1e300, dtype=torch.float64))
    assert not layer.is_finite()


class Kernels(nn.Module):
    """A convolution with everything that a factorization must hand on, used twice, before a ReLU."""

    def __init__(self, **settings):
        super().__init__()
        self.block = nn.Module()
        self.block.conv = nn.Conv2d(6, 6, 3, **settings)

    def forward(self, x):
        return self.block.conv(self.block.conv(x).relu()).relu()


@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_a_layer_is_split_in_two_that_compute_what_it_did(padding):
    """A spatial factorization of full rank: a vertical kernel, then a horizontal one."""
    torch.manual_seed(0)
    samples = torch.randn(2, 6, 9, 9)
    graph = normalize(TorchExport().graph(Kernels(padding=padding).double().eval(), (samples.double(),), {}))
    expected = graph.module()(samples.double())
    (layer,) = find_layers(graph)
    weight, one = graph.constants["block.conv.weight"], layer.map
    rank = 18
    # [out, in, kh, kw] as a matrix [in · kh, out · kw]: its factors are kernels of 3 × 1 and 1 × 3.
    left, values, right = torch.linalg.svd(weight.permute(1, 2, 0, 3).reshape(18, 18))
    vertical = (left * values).T.reshape(rank, 6, 3, 1)
    horizontal = right.reshape(rank, 6, 3).permute(1, 0, 2).unsqueeze(2).contiguous()
    sides = ([1, 0], [0, 1]) if padding == 1 else (padding, padding)
    parts = [
        (LinearMap((rank, 6, 3, 1), None, one.device, (1, 1), sides[0], (1, 1), (0, 0)), vertical),
        (LinearMap((6, rank, 1, 3), one.bias, one.device, (1, 1), sides[1], (1, 1), (0, 0)), horizontal),
    ]
    last = edit.split_layer(graph, layer, parts)
    graph.prune()
    torch.testing.assert_close(graph.module()(samples.double()), expected)
    found = find_layers(graph)
    assert [layer.name for layer in found] == ["block.conv.0", "block.conv.1"]
    assert found[1].calls == tuple(last)
    assert found[1].own_bias is None  # it has two calls
    assert set(graph.constants) == {"block.conv.0.weight", "block.conv.1.weight", "block.conv.1.bias"}
    assert all(isinstance(node.meta["val"].shape[0], torch.SymInt) for node in last)


@pytest.mark.parametrize(
    "module",
    [nn.Linear(4, 4), nn.ConvTranspose1d(4, 4, 2, 2, groups=2), nn.Conv1d(4, 4, 3, padding="same"), nn.Conv3d(4, 4, 1)],
    ids=lambda module: type(module).__name__,
)
def test_any_layer_can_be_written_anew(module):
    samples = torch.randn(2, 4, *[5] * len(getattr(module, "kernel_size", ())))
    graph = normalize(TorchExport().graph(nn.Sequential(module).eval(), (samples,), {}))
    expected, (layer,) = graph.module()(samples), find_layers(graph)
    edit.split_layer(graph, layer, [(layer.map, graph.constants["0.weight"])])
    assert torch.equal(graph.module()(samples), expected)
    assert [one.name for one in find_layers(graph)] == ["0.0"]


def test_selected_inputs_give_the_same_output_and_keep_the_moments():
    graph, samples = conv_norm_conv()
    expected, layer = graph.module()(samples), find_layers(graph)[0]
    weight = graph.constants["0.weight"]
    doubled = torch.cat([weight[:, :1] / 2, weight[:, 1:], weight[:, :1] / 2], 1)
    edit.select_inputs(graph, layer, torch.tensor([0, 1, 2, 0]), doubled)
    torch.testing.assert_close(graph.module()(samples), expected)
    assert "0.weight" in graph.moments
    assert graph.moments.keys() == graph.copy().moments.keys()


@pytest.mark.parametrize(
    ("weight", "bias"), [("a.conv.weight", "a.conv.bias"), ("in_proj_weight", "in_proj_bias"), ("table", "table_bias")]
)
def test_a_new_bias_is_named_after_its_weight(weight, bias):
    assert edit.bias_name(weight) == bias
