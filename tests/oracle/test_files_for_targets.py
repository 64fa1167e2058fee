"""Files for a target hold just what the target says, and give the network's results."""

import numpy as np
import pytest
import torch
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw
from roundwise.exporters import EXPORTERS
from roundwise.targets import TARGETS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
numpy_helper = pytest.importorskip("onnx.numpy_helper")

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
ONNX_TARGETS = [target.name for target in EXPORTERS[".onnx"].targets]
TENSORRT = TARGETS["tensorrt"]


class Residual(nn.Module):
    """Convolutions, an addition, pooling with and without averages, a concatenation, a softmax and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(16, 5)

    def forward(self, x):
        x = self.first(x).relu()
        x = self.pool(x + nn.functional.hardswish(self.deep(x)))
        x = torch.cat([x, x.softmax(1)], 1).mean((2, 3))
        return self.last(x)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Residual().eval()


def quantized(network, target, bits=4, **settings):
    recipe = quantizing(rw.Weights(bits, **settings), rw.rounding.Nearest(), activations=rw.Activations())
    return rw.quantize(network, IMAGES, recipe, target=target)


def quantizers(path):
    """Of each quantizing node of a file: its kind, the numbers in its zero point, and their type."""
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    types = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    return [(node.op_type, np.atleast_1d(constants[node.input[2]]), types[node.input[2]]) for node in nodes]


@pytest.mark.parametrize(
    ("bits", "granularity"), in_thirds([2, 4, 8], {"channel": rw.PerChannel(), "tensor": rw.PerTensor()})
)
def test_a_file_for_tensorrt_has_neither_zero_points_nor_unsigned_codes(network, bits, granularity, tmp_path):
    model = quantized(network, "tensorrt", bits, granularity=granularity)
    file = rw.export(model, tmp_path / "net.onnx")
    found = quantizers(file.path)
    assert {kind for kind, *_ in found} == {"QuantizeLinear", "DequantizeLinear"}
    assert {stored for *_, stored in found} == {"INT8"}
    assert not any(numbers.any() for _, numbers, _ in found)
    types = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in onnx.load(file.path).graph.initializer}
    assert not {"UINT8", "INT4", "UINT4", "UINT16", "INT16"} & types
    assert file.target == "tensorrt"


@pytest.mark.parametrize("name", in_thirds(list(ONNX_TARGETS)))
def test_a_file_gives_the_results_of_the_network_that_was_quantized_for_its_target(name, network, tmp_path):
    model = quantized(network, name)
    file = rw.export(model, tmp_path / "net.onnx")
    assert file.target == name == model.recipe.target
    assert ("roundwise.target", name) in {(it.key, it.value) for it in onnx.load(file.path).metadata_props}
    assert any(name in note for note in model.report.notes)
    outputs = onnxruntime.InferenceSession(file.path).run(None, {"x": IMAGES.numpy()})[0]
    with torch.no_grad():
        wanted = model(IMAGES).numpy()
    assert np.abs(outputs - wanted).max() < 0.05 * np.abs(wanted).max()


def test_the_same_codes_are_stored_for_speed_or_for_size(network, tmp_path):
    model = quantized(network, None)
    fast, small = (rw.export(model, tmp_path / f"{name}.onnx", target=name) for name in ("ort-cpu", "ort-small"))
    assert (fast.weight_types, small.weight_types) == ({"INT8": 3}, {"INT4": 3})
    assert small.bytes < fast.bytes
    assert small.compressed_bytes < small.bytes
    codes = [
        {tensor.name: numpy_helper.to_array(tensor).astype(int) for tensor in onnx.load(file.path).graph.initializer}
        for file in (fast, small)
    ]
    for name in ("first.weight", "deep.weight", "last.weight"):
        np.testing.assert_array_equal(codes[0][name], codes[1][name])


def test_weights_of_a_network_with_float_activations_stay_narrow(network, tmp_path):
    model = rw.quantize(network, IMAGES, quantizing(rounding=rw.rounding.Nearest()))
    assert rw.export(model, tmp_path / "net.onnx").weight_types == {"INT4": 3}


@pytest.mark.parametrize(("bits", "stored"), [(4, "INT4"), (8, "INT16")])
def test_weights_with_scales_per_group_keep_out_of_integer_kernels(bits, stored, tmp_path):
    layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    weights = rw.Weights(bits, rw.PerGroup(32))
    recipe = quantizing(weights, rw.rounding.Nearest(), activations=rw.Activations())
    model = rw.quantize(layers, torch.randn(8, 5, 64, generator=torch.Generator().manual_seed(0)), recipe)
    file = rw.export(model, tmp_path / "net.onnx")
    assert file.weight_types == {stored: 2}


@pytest.mark.parametrize(
    ("target", "settings", "facts"),
    [
        ("tensorrt", {"bits": 4}, ("activation 'x'", "symmetric=True")),
        ("ort-cpu-avx2", {"bits": 8}, ("layer 'first'", "bits=7")),
        ("qnn", {"bits": 4, "symmetric": False}, ("layer 'first'", "symmetric=True")),
    ],
)
def test_a_network_that_a_target_cannot_hold_is_refused_by_the_name_of_the_layer(
    target, settings, facts, network, tmp_path
):
    model = quantized(network, None, **settings)
    with pytest.raises(rw.ExportError) as caught:
        rw.export(model, tmp_path / "net.onnx", target=target)
    assert all(fact in str(caught.value) for fact in (target, *facts))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_target_is_refused_and_so_is_one_for_a_format_without_targets(network, tmp_path):
    model = quantized(network, None)
    with pytest.raises(rw.ExportError) as caught:
        rw.export(model, tmp_path / "net.onnx", target="tensorflow")
    assert all(name in str(caught.value) for name in ("tensorflow", *ONNX_TARGETS))
    with pytest.raises(rw.ExportError, match="tensorrt"):
        rw.export(model, tmp_path / "net.rw", target="tensorrt")


def test_a_network_in_a_float_type_that_the_target_has_not_is_refused_before_the_run(network):
    with pytest.raises(rw.RecipeError) as caught:
        rw.quantize(nn.Linear(4, 4).double().eval(), torch.randn(8, 4).double(), target="tensorrt")
    assert all(fact in str(caught.value) for fact in ("float64", "tensorrt", "float32"))
