"""Folding batch-norm leaves every network's outputs as they were, folds what can be folded, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_linear_maps import convolutions
from torch import fx, nn

from roundwise.graph.graph import Graph
from roundwise.graph.transforms.fold_batchnorm import fold_batchnorm

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
examples = settings(max_examples=100, deadline=None, derandomize=True)


class Layer(nn.Module):
    """A linear layer or convolution as the operation that a captured graph has."""

    def __init__(self, module):
        super().__init__()
        self.weight, self.bias, self.call = module.weight, module.bias, self.operation(module)

    @staticmethod
    def operation(module):
        if isinstance(module, nn.Linear):
            return aten.linear.default, ()
        name = (
            type(module).__name__.lower().replace("conv", "conv_")
            if module.transposed
            else type(module).__name__.lower()
        )
        packet = getattr(aten, name)
        if module.transposed:
            overload = packet.default if name.endswith("1d") else packet.input
            return overload, (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
        overload = packet.padding if isinstance(module.padding, str) else packet.default
        return overload, (module.stride, module.padding, module.dilation, module.groups)

    def forward(self, x):
        operation, settings = self.call
        return operation(x, self.weight, self.bias, *settings)


class Norm(nn.Module):
    """Batch-norm in evaluation, with random parameters and statistics."""

    def __init__(self, channels, affine=True, shift=True, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels, dtype=dtype) + 0.5) if affine else None
        self.bias = nn.Parameter(torch.randn(channels, dtype=dtype) * shift) if affine else None
        self.register_buffer("mean", torch.randn(channels, dtype=dtype) * shift)
        self.register_buffer("variance", torch.rand(channels, dtype=dtype) + 0.5)

    def forward(self, x):
        return aten.batch_norm.default(x, self.weight, self.bias, self.mean, self.variance, False, 0.1, 1e-5, False)


class Recorder(fx.Interpreter):
    """Notes each operation's value, as a captured graph does, to tell its shape."""

    def run_node(self, node):
        node.meta["val"] = super().run_node(node)
        return node.meta["val"]


def graph_of(model, inputs):
    """The graph of a model that is written in operations; quicker than a capture."""
    traced, first = fx.symbolic_trace(model), {}
    for node in traced.graph.find_nodes(op="get_attr"):
        node.replace_all_uses_with(first.setdefault(node.target, node))
    traced.graph.eliminate_dead_code()
    with torch.no_grad():
        Recorder(traced).run(inputs)
    return Graph.of_module(traced)


def check(model, inputs, left, rtol=1e-9, atol=1e-9):
    """Fold, compare the outputs with the model's, and count the batch-norms that are left."""
    graph = graph_of(model, inputs)
    before = {name: value.clone() for name, value in graph.constants.items()}
    folded = fold_batchnorm(graph)
    with torch.no_grad():
        torch.testing.assert_close(folded.module()(inputs), model(inputs), rtol=rtol, atol=atol)
    assert sum("batch_norm" in str(node.target) for node in folded.operations.nodes) == left
    assert all(torch.equal(before[name], value) for name, value in graph.constants.items()), "the argument was changed"
    return folded


def sequential(*modules):
    return nn.Sequential(*(Layer(m) if hasattr(m, "in_features") or hasattr(m, "kernel_size") else m for m in modules))


@st.composite
def layers_with_norms(draw, side):
    """A layer, an input, and a batch-norm for its outputs or its inputs."""
    if draw(st.integers(0, 3)) == 0:
        module = nn.Linear(draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.booleans()), dtype=torch.float64)
        inputs = torch.randn(draw(st.integers(1, 3)), module.in_features, dtype=torch.float64)
    else:
        module, inputs = draw(convolutions())
    channels = (module(inputs) if side == "after" else inputs).shape[1]
    return module, inputs, Norm(channels, draw(st.booleans()), draw(st.booleans()), torch.float64)


@examples
@given(layers_with_norms("after"))
def test_a_batch_norm_after_a_layer_always_folds(drawn):
    module, inputs, norm = drawn
    check(sequential(module, norm), inputs, left=0)


@examples
@given(layers_with_norms("before"))
def test_a_batch_norm_before_a_layer_folds_where_every_tap_sees_a_value(drawn):
    module, inputs, norm = drawn
    padding = [] if isinstance(module, nn.Linear) else module.padding
    if padding == "same":
        padding = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
    partial = getattr(module, "transposed", False) or (padding != "valid" and any(padding))
    shifts = bool(norm.mean.any()) or (norm.bias is not None and bool(norm.bias.any()))
    check(sequential(norm, module), inputs, left=int(partial and shifts))


@examples
@given(layers_with_norms("before"), st.booleans())
def test_batch_norms_on_both_sides_of_a_layer_fold(drawn, affine):
    module, inputs, norm = drawn
    after = Norm(module(inputs).shape[1], affine, dtype=torch.float64)
    alone = fold_batchnorm(graph_of(sequential(norm, module), inputs))
    left = sum("batch_norm" in str(node.target) for node in alone.operations.nodes)
    check(sequential(norm, module, after), inputs, left)


# --------------------------------------------------------------------------------------------------- one by one


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_folded_layer_keeps_its_names():
    folded = check(sequential(nn.Conv2d(3, 4, 3), Norm(4)), torch.randn(2, 3, 6, 6), 0, 1e-4, 1e-5)
    assert set(folded.constants) == {"0.weight", "0.bias"}
    folded = check(sequential(nn.Conv2d(3, 4, 3, bias=False), Norm(4)), torch.randn(2, 3, 6, 6), 0, 1e-4, 1e-5)
    assert set(folded.constants) == {"0.weight", "0.bias"}


def test_batch_norms_that_follow_each_other_fold_one_after_the_other():
    check(sequential(nn.Conv2d(3, 4, 3), Norm(4), Norm(4), Norm(4)), torch.randn(2, 3, 6, 6), 0, 1e-4, 1e-5)
    check(sequential(Norm(3), Norm(3), nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 6, 6), 0, 1e-4, 1e-5)


def test_a_batch_norm_between_two_layers_folds_into_the_one_before():
    model = sequential(nn.Linear(3, 4), Norm(4), nn.Linear(4, 2))
    folded = check(model, torch.randn(5, 3), 0, 1e-4, 1e-5)
    assert torch.equal(folded.constants["2.weight"], model[2].weight)


def test_one_batch_norm_after_two_layers_folds_into_each():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = Layer(nn.Conv1d(3, 3, 1)), Layer(nn.Conv1d(3, 3, 1)), Norm(3)

        def forward(self, x):
            return self.norm(self.b(torch.ops.aten.relu.default(self.norm(self.a(x)))))

    check(Shared(), torch.randn(2, 3, 5), 0, 1e-4, 1e-5)


def test_a_layer_whose_output_is_used_elsewhere_keeps_its_batch_norm():
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = Layer(nn.Conv2d(3, 3, 1)), Norm(3)

        def forward(self, x):
            y = self.a(x)
            return self.norm(y) + y

    check(Tapped(), torch.randn(2, 3, 4, 4), 1, 1e-4, 1e-5)


def test_a_batch_norm_whose_output_is_used_elsewhere_does_not_fold_forward():
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = Layer(nn.Conv2d(3, 3, 1)), Norm(3)

        def forward(self, x):
            y = self.norm(x)
            return self.a(y) + y

    check(Tapped(), torch.randn(2, 3, 4, 4), 1, 1e-4, 1e-5)


def test_a_layer_that_is_called_twice_folds_if_the_same_batch_norm_follows_both_times():
    class Reused(nn.Module):
        def __init__(self, norms):
            super().__init__()
            self.a, self.norms = Layer(nn.Conv2d(3, 3, 3, padding=1)), nn.ModuleList(norms)

        def forward(self, x):
            for norm in self.norms:
                x = self.a(x)
                x = torch.ops.aten.relu.default(x if norm is None else norm(x))
            return x

    one, other = Norm(3), Norm(3)
    inputs = torch.randn(2, 3, 4, 4)
    check(Reused([one, one]), inputs, 0, 1e-4, 1e-5)
    check(Reused([one, other]), inputs, 2, 1e-4, 1e-5)
    check(Reused([one, None]), inputs, 1, 1e-4, 1e-5)


def test_a_weight_that_something_else_reads_keeps_its_batch_norm():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = Layer(nn.Conv2d(3, 3, 1)), Norm(3)

        def forward(self, x):
            return self.norm(self.a(x)) + torch.ops.aten.sum.default(self.a.weight)

    check(Read(), torch.randn(2, 3, 4, 4), 1, 1e-4, 1e-5)


def test_a_weight_with_two_biases_keeps_its_batch_norms():
    class Biases(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = Layer(nn.Linear(3, 3)), Layer(nn.Linear(3, 3)), Norm(3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.norm(self.a(x)) + self.norm(self.b(x))

    check(Biases(), torch.randn(2, 3), 2, 1e-4, 1e-5)


def test_a_bias_that_two_layers_share_is_not_changed_for_the_other():
    class SharedBias(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = Layer(nn.Linear(3, 3)), Layer(nn.Linear(3, 3)), Norm(3)
            self.b.bias = self.a.bias

        def forward(self, x):
            return self.b(torch.ops.aten.relu.default(self.norm(self.a(x))))

    check(SharedBias(), torch.randn(2, 3), 0, 1e-4, 1e-5)


def test_on_sequences_the_channels_of_batch_norm_are_not_those_of_a_linear_layer():
    check(sequential(nn.Linear(3, 4), Norm(5)), torch.randn(2, 5, 3), 1, 1e-4, 1e-5)
    check(sequential(nn.Linear(3, 5), Norm(5)), torch.randn(2, 5, 3), 1, 1e-4, 1e-5)
    check(sequential(Norm(3), nn.Linear(3, 4)), torch.randn(2, 3, 3), 1, 1e-4, 1e-5)


def test_an_output_without_batch_dimension_has_its_channels_elsewhere():
    check(sequential(nn.Conv2d(3, 4, 1), Norm(4)), torch.randn(3, 4, 4), 1, 1e-4, 1e-5)


def test_statistics_of_the_batch_cannot_fold():
    class OfTheBatch(nn.Module):
        def forward(self, x):
            return aten.batch_norm.default(x, None, None, None, None, True, 0.1, 1e-5, False)

    check(sequential(nn.Conv2d(3, 4, 1), OfTheBatch()), torch.randn(2, 3, 4, 4), 1, 1e-4, 1e-5)


def test_parameters_that_the_network_computes_cannot_fold():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = Layer(nn.Conv2d(3, 3, 1)), Norm(3)

        def forward(self, x):
            gamma = torch.ops.aten.mean.dim(x, [0, 2, 3])
            return aten.batch_norm.default(
                self.a(x), gamma, None, self.norm.mean, self.norm.variance, False, 0.1, 1e-5, False
            )

    check(Computed(), torch.randn(2, 3, 4, 4), 1, 1e-4, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_folded_in_float64_and_stored_as_it_was(dtype):
    model = sequential(nn.Conv2d(3, 4, 3, dtype=dtype), Norm(4, dtype=dtype))
    inputs = torch.randn(2, 3, 6, 6, dtype=dtype)
    tolerance = 8 * torch.finfo(dtype).eps
    folded = check(model, inputs, 0, tolerance, tolerance)
    assert {value.dtype for value in folded.constants.values()} == {dtype}


def test_weights_that_would_overflow_stay_as_they_are():
    model = sequential(nn.Conv2d(3, 4, 3, dtype=torch.float16), Norm(4, dtype=torch.float16))
    model[0].weight.data *= 1e4
    model[1].variance.fill_(1e-5)
    check(model, 1e-4 * torch.randn(2, 3, 6, 6, dtype=torch.float16), 1, 1e-2, 1e-2)


def test_channels_that_died_fold_to_constants():
    model = sequential(nn.Conv2d(3, 4, 3, bias=False), Norm(4))
    model[0].weight.data[1] = 0
    model[1].weight.data[2] = 0
    model[1].variance[3] = 0
    folded = check(model, torch.randn(2, 3, 6, 6), 0, 1e-3, 1e-3)
    assert not folded.constants["0.weight"][1:3].any()


@pytest.mark.parametrize(("padding", "mode", "left"), [(0, "zeros", 0), (1, "zeros", 1), (1, "reflect", 1)])
def test_before_a_convolution_of_size_one_padding_matters_as_well(padding, mode, left):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = Norm(3), Layer(nn.Conv2d(3, 4, 1, padding=padding if mode == "zeros" else 0))

        def forward(self, x):
            x = self.norm(x)
            return self.conv(x if mode == "zeros" else F.pad(x, (1, 1, 1, 1), mode=mode))

    check(Padded(), torch.randn(2, 3, 4, 4), left, 1e-4, 1e-5)
