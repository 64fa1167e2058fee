"""A layer is a matrix: checked against PyTorch's own operations, over all that a layer can be."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from roundwise.graph.matrix import LinearMap

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # PyTorch, on even kernels: slower
examples = settings(max_examples=100, deadline=None, derandomize=True)


def of_module(module):
    """As it is found in a graph, where an operation's arguments have names."""
    arguments = {"transposed": isinstance(module, tuple(TRANSPOSED.values()))}
    if not isinstance(module, nn.Linear):
        arguments |= {name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups")}
        arguments |= {"output_padding": module.output_padding} if arguments["transposed"] else {}
    return LinearMap.from_arguments(module.weight, module.bias, arguments)


@st.composite
def linear_layers(draw):
    torch.manual_seed(draw(st.integers(0, 9)))
    module = nn.Linear(draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.booleans()), dtype=torch.float64)
    before = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    return module, torch.randn(*before, module.in_features, dtype=torch.float64)


@st.composite
def convolutions(draw, transposed=st.booleans()):
    """A convolution with everything random, and an input that it can take, sometimes the smallest."""
    torch.manual_seed(draw(st.integers(0, 9)))
    dims, transposed = draw(st.integers(1, 3)), draw(transposed)
    groups, depthwise = draw(st.integers(1, 3)), draw(st.booleans())
    inputs, outputs = groups * (1 if depthwise else draw(st.integers(1, 3))), groups * draw(st.integers(1, 3))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation, padding = each(1, 4 if dims < 3 else 3), each(1, 3), each(1, 2), each(0, 2)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    settings = {"dilation": dilation, "groups": groups, "bias": draw(st.booleans()), "dtype": torch.float64}
    if transposed:
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        settings["output_padding"] = extra
        # At least one output: (n − 1)·stride + reach + extra − 2·padding ≥ 1.
        smallest = [
            max(1, math.ceil((1 + 2 * p - r - e) / s) + 1)
            for p, r, e, s in zip(padding, reach, extra, stride, strict=True)
        ]
    else:
        form = draw(st.sampled_from(["numbers", "same", "valid"]))
        padding, stride = (padding if form == "numbers" else form), ((1,) * dims if form == "same" else stride)
        around = {"same": [1 - r for r in reach], "valid": [0] * dims}.get(form, [-2 * p for p in padding])
        smallest = [max(1, r + a) for r, a in zip(reach, around, strict=True)]
    kind = (TRANSPOSED if transposed else CONVOLUTIONS)[dims]
    module = kind(inputs, outputs, kernel, stride, padding, **settings)
    space = [n + draw(st.integers(0, 3 if dims < 3 else 1)) for n in smallest]
    return module, torch.randn(draw(st.integers(1, 3)), inputs, *space, dtype=torch.float64)


layers = st.one_of(linear_layers(), convolutions())


@examples
@given(layers)
def test_the_weight_becomes_a_matrix_and_back(layer):
    module, _ = layer
    linear = of_module(module)
    matrix = linear.to_matrix(module.weight)
    assert tuple(matrix.shape) == linear.matrix_shape
    assert torch.equal(linear.to_weight(matrix), module.weight)
    assert linear.weight_shape == tuple(module.weight.shape)


@examples
@given(layers)
def test_the_layer_is_its_matrix_times_unfolded_inputs(layer):
    module, inputs = layer
    linear, outputs = of_module(module), module(inputs)
    groups, rows, cols = linear.matrix_shape
    unfolded = linear.unfold(inputs)
    product = linear.to_matrix(module.weight) @ unfolded
    if linear.bias is not None:
        product = product + linear.bias.reshape(groups, rows, 1)
    positions = outputs.numel() // (groups * rows)
    assert tuple(unfolded.shape) == (groups, cols, positions)
    assert tuple(linear.fold_outputs(outputs).shape) == (groups, rows, positions)
    torch.testing.assert_close(product, linear.fold_outputs(outputs), rtol=1e-9, atol=1e-9)


@examples
@given(layers)
def test_applying_the_matrix_is_applying_the_layer(layer):
    module, inputs = layer
    linear = of_module(module)
    assert torch.equal(linear.apply_matrix(linear.to_matrix(module.weight), inputs), module(inputs))


@examples
@given(layers)
def test_the_bias_follows_the_precision_of_the_weight(layer):
    module, inputs = layer
    linear = of_module(module)
    assert linear.apply(module.weight.float(), inputs.float()).dtype == torch.float32


@examples
@given(convolutions())
def test_a_convolution_of_one_sample_without_batch_dimension_is_a_batch_of_one(layer):
    module, inputs = layer
    linear = of_module(module)
    assert torch.equal(linear.unfold(inputs[0]), linear.unfold(inputs[:1]))
    assert torch.equal(linear.fold_outputs(module(inputs[0])), linear.fold_outputs(module(inputs[:1])))
    assert linear.as_items(inputs[0]).shape == inputs[:1].shape


@examples
@given(convolutions(transposed=st.just(False)))
def test_a_convolution_pads_if_some_window_sees_a_zero_that_is_not_in_the_input(layer):
    module, inputs = layer
    linear = of_module(module)
    assert linear.pads == bool((linear.unfold(torch.ones_like(inputs)) == 0).any())


@examples
@given(layers, st.randoms(use_true_random=False))
def test_groups_are_independent(layer, random):
    module, _ = layer
    linear = of_module(module)
    matrix = linear.to_matrix(torch.zeros_like(module.weight))
    group = random.randrange(linear.groups)
    matrix[group] = 1
    weight = linear.to_weight(matrix)
    axis = 0  # both kinds of convolution keep a group's weights together along the first dimension
    assert torch.equal(
        weight.unflatten(axis, (linear.groups, -1)).flatten(1).any(1), torch.arange(linear.groups) == group
    )


@pytest.mark.parametrize("shape", [(4,), (1, 4), (2, 3, 4), (2, 1, 3, 4)])
def test_a_linear_layer_takes_any_dimensions_before_its_features(shape):
    torch.manual_seed(0)
    module, inputs = nn.Linear(4, 3), torch.randn(shape)
    linear = of_module(module)
    product = linear.to_matrix(module.weight) @ linear.unfold(inputs) + module.bias.reshape(1, 3, 1)
    torch.testing.assert_close(product, linear.fold_outputs(module(inputs)))


def test_settings_given_once_count_for_every_dimension():
    weight = torch.randn(6, 2, 3, 3, 3)
    arguments = {"stride": [2], "padding": 1, "dilation": [1], "groups": 2, "transposed": False}
    linear = LinearMap.from_arguments(weight, None, arguments)
    assert (linear.stride, linear.padding, linear.dilation) == ((2, 2, 2), (1, 1, 1), (1, 1, 1))
    inputs = torch.randn(1, 4, 5, 4, 3)
    assert torch.equal(linear.apply(weight, inputs), F.conv3d(inputs, weight, None, 2, 1, 1, 2))


@pytest.mark.parametrize(
    ("module", "operation", "kernel", "dims"),
    [
        (nn.Linear(2, 3), "linear", (), 0),
        (nn.Conv1d(2, 3, 5), "conv1d", (5,), 1),
        (nn.Conv2d(2, 3, (1, 2)), "conv2d", (1, 2), 2),
        (nn.ConvTranspose2d(2, 3, (1, 2)), "conv_transpose2d", (1, 2), 2),
        (nn.ConvTranspose3d(2, 3, 2), "conv_transpose3d", (2, 2, 2), 3),
    ],
)
def test_a_layer_says_what_it_is(module, operation, kernel, dims):
    linear = of_module(module)
    assert (linear.operation, linear.kernel, linear.dims) == (operation, kernel, dims)


def test_integer_codes_become_a_weight_like_floats_do():
    module = nn.ConvTranspose2d(4, 6, 3, groups=2)
    linear = of_module(module)
    codes = torch.randint(-8, 8, linear.matrix_shape, dtype=torch.int32)
    assert linear.to_weight(codes).dtype == torch.int32
    assert torch.equal(linear.to_matrix(linear.to_weight(codes)), codes)
