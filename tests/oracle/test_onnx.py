"""ONNX Runtime is the oracle: what it computes from an exported file is what the model computes.

Most models here are made by hand, codes and all, so that a fault of the export cannot hide behind the pipeline's.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from facts import has, raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise import exporters
from roundwise.artifacts import dialect
from roundwise.artifacts.model import Model, versions
from roundwise.exporters import export, verify
from roundwise.exporters.onnx import exporter as onnx_export
from roundwise.frontends.torch_export import TorchExport
from roundwise.numerics.grid import Codebook
from roundwise.report import Report
from roundwise.targets import TARGETS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
check = pytest.importorskip("roundwise.exporters.onnx.check")
translate = pytest.importorskip("roundwise.exporters.onnx.translate")
onnx_weights = pytest.importorskip("roundwise.exporters.onnx.weights")

DEQUANTIZE, PER_CHANNEL, PER_GROUP = map(dialect.operator_for, dialect.DEQUANTIZERS)


class Layer(nn.Module):
    """A layer with random codes; `shares` says what shares a scale: None (all), an axis, or `("group", size)`."""

    def __init__(self, *shape, bits=4, symmetric=True, shares=0):
        super().__init__()
        self.book, self.shares, self.shape = Codebook(bits, symmetric), shares, shape
        qmin, qmax, span = self.book.qmin, self.book.qmax, self.book.qmax - self.book.qmin
        if isinstance(shares, tuple):
            shape = (shape[0], math.prod(shape[1:]))
            scales = (shape[0], shape[1] // shares[1])
        else:
            scales = () if shares is None else (shape[shares],)
        zeros = torch.zeros(scales) if symmetric else torch.randint(qmin + span // 4, qmax - span // 4 + 1, scales)
        self.register_buffer("weight_codes", torch.randint(qmin, qmax + 1, shape).to(self.book.dtype))
        self.register_buffer("weight_scale", (0.5 + torch.rand(scales)) / span)
        self.register_buffer("weight_zero_point", zeros.to(torch.int64))
        self.constants = None if scales else (self.weight_scale.item(), int(zeros))

    def weight(self, dtype=torch.float32):
        grid, range_and_dtype = (self.weight_scale, self.weight_zero_point), (self.book.qmin, self.book.qmax, dtype)
        if self.shares is None:
            return DEQUANTIZE(self.weight_codes, *self.constants, *range_and_dtype)
        if isinstance(self.shares, int):
            return PER_CHANNEL(self.weight_codes, *grid, self.shares, *range_and_dtype)
        weight = PER_GROUP(self.weight_codes, *grid, self.shares[1], *range_and_dtype)
        return weight if len(self.shape) == 2 else weight.view(self.shape)


class Linear(Layer):
    def __init__(self, inputs, outputs, **settings):
        super().__init__(outputs, inputs, **settings)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return F.linear(x, self.weight(x.dtype), self.bias)


class Conv(Layer):
    def __init__(self, *shape, call=F.conv2d, groups=1, **settings):
        super().__init__(*shape, **settings)
        self.call, self.groups = call, groups

    def forward(self, x):
        return self.call(x, self.weight(x.dtype), padding=1, groups=self.groups)


def quantized_by_hand(module, *args, dynamic=True, **kwargs):
    """A `Model` that runs the module, whose weights are codes already; `args` and `kwargs` are its samples."""
    source = module.eval()
    if not dynamic:
        source = torch.export.export(source, args, kwargs)
    graph = dialect.with_functions(TorchExport().graph(source, args, kwargs))
    report = Report((), samples=0, float_bytes=0, quantized_bytes=0, setup_seconds={}, peak_activation_bytes=0)
    return Model(graph, report, rw.Recipe(), versions(), (args, kwargs))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layers = (Conv(8, 3, 3, 3), nn.ReLU(), Conv(8, 1, 3, 3, groups=8), nn.ReLU6(), nn.Flatten(), Linear(512, 10))
    return quantized_by_hand(nn.Sequential(*layers), torch.randn(8, 3, 8, 8))


@pytest.fixture(scope="module")
def graph(network):
    return translate.build_graph(onnx_export._program(network), TARGETS["ort-cpu"])


@pytest.fixture(scope="module")
def exported(network, graph, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translate, "build_graph", lambda *_: graph)
        return export(network, tmp_path_factory.mktemp("network") / "m.onnx")


@pytest.fixture
def built_once(network, graph, monkeypatch):
    """`network` without the building of its graph: for tests of what happens afterwards."""
    monkeypatch.setattr(translate, "build_graph", lambda *_: graph)
    return network


def weights(path):
    """For each weight: the type of its codes, what it feeds, and the settings of its DequantizeLinear."""
    graph = onnx.load(path).graph
    types = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            codes, scale, zero_point = node.input
            assert types[zero_point] == types[codes]
            feeds = [user.op_type for user in graph.node if node.output[0] in user.input]
            settings = {attribute.name: attribute.i for attribute in node.attribute}
            found[codes] = (types[codes], types[scale], feeds, settings)
    return found


def run(path, **inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def test_a_network_of_convolutions_and_a_linear_layer_agrees(exported):
    assert exported.relative_difference < 1e-5
    assert exported.max_difference < 1e-4
    assert exported.outputs == exported.default_outputs
    assert exported.outputs[0].class_disagreements == 0
    assert has(exported.verified_on, "8, 2, 1")


def test_the_result_says_what_was_written(exported):
    assert exported.weight_types == {"INT4": 3}
    assert exported.opset == onnx.load(exported.path).opset_import[0].version == 21
    assert exported.bytes == exported.path.stat().st_size
    assert has(exported, 3, "INT4", exported.path)
    assert json.loads(json.dumps(exported.as_dict()))["outputs"][0]["name"] == "output"


def test_weights_feed_their_layers_directly(exported):
    assert weights(exported.path) == {
        "0.weight": ("INT4", "FLOAT", ["Conv"], {"axis": 0}),
        "2.weight": ("INT4", "FLOAT", ["Conv"], {"axis": 0}),
        "5.weight": ("INT4", "FLOAT", ["Gemm"], {"axis": 0}),
    }


def test_the_file_stands_alone_and_takes_any_batch(network, exported):
    assert [file.name for file in exported.path.parent.iterdir()] == ["m.onnx"]
    x = torch.randn(5, 3, 8, 8)
    outputs = run(exported.path, input=x.numpy())
    np.testing.assert_allclose(outputs["output"], network(x).detach().numpy(), atol=1e-4)


def test_the_file_knows_its_recipe_and_nothing_of_the_machine(exported):
    model = onnx.load(exported.path)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["roundwise.version"] == rw.__version__
    assert rw.Recipe.from_dict(json.loads(properties["roundwise.recipe.settings"])) == rw.Recipe()
    assert b"test_onnx.py" not in exported.path.read_bytes()


STORED = {
    (2, True): "INT4",
    (2, False): "UINT4",
    (3, True): "INT4",
    (4, False): "UINT4",
    (5, True): "INT8",
    (6, False): "UINT8",
    (8, True): "INT8",
    (8, False): "UINT8",
    (16, True): "INT16",
    (16, False): "UINT16",
}


class Parallel(nn.Module):
    """Layers on the same input, each with an output of its own."""

    def __init__(self, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)

    def forward(self, x):
        return {name: layer(x) for name, layer in self.layers.items()}


def test_codes_and_zero_points_have_the_narrowest_type_that_holds_them(tmp_path):
    layers = {f"w{bits}{'s' if s else 'a'}": Conv(8, 3, 3, 3, bits=bits, symmetric=s) for bits, s in STORED}
    result = export(quantized_by_hand(Parallel(**layers), torch.randn(4, 3, 6, 6)), tmp_path / "m.onnx")
    assert [output.name for output in result.outputs] == list(layers)
    assert result.relative_difference < 1e-5
    found = {name.split(".")[1]: stored for name, (stored, *_) in weights(result.path).items()}
    assert found == dict(zip(layers, STORED.values(), strict=True))


def test_every_granularity_agrees(tmp_path):
    kinds = {"tensor": None, "channel": 0, "input": 1, "group": ("group", 18)}
    layers = {
        f"{name}_{symmetric}": Conv(6, 4, 3, 3, shares=shares, symmetric=symmetric)
        for name, shares in kinds.items()
        for symmetric in (True, False)
    }
    result = export(quantized_by_hand(Parallel(**layers), torch.randn(4, 4, 6, 6)), tmp_path / "m.onnx")
    assert result.relative_difference < 1e-5
    found = weights(result.path)
    assert found["layers.tensor_True.weight"] == ("INT4", "FLOAT", ["Conv"], {})
    assert found["layers.input_False.weight"] == ("UINT4", "FLOAT", ["Conv"], {"axis": 1})
    # A group runs across the positions of a kernel, so its scales lie along no axis of the convolution's weight.
    assert found["layers.group_True.weight"] == ("INT4", "FLOAT", ["Reshape"], {"axis": 1, "block_size": 18})


class Attention(nn.Module):
    """A transformer's block on token numbers, with a dict of outputs, and the embedding tied to the last layer."""

    def __init__(self, width=64, heads=4, tokens=32):
        super().__init__()
        self.heads = heads
        self.packed = Linear(width, 3 * width, shares=("group", 32), symmetric=False)
        self.project = Linear(width, width, bits=8)
        self.table = Linear(width, tokens)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens, *, mask):
        x = F.embedding(tokens, self.table.weight())
        batch, length, width = x.shape
        packed = self.packed(self.norm(x)).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*packed.unbind(0), attn_mask=mask[:, None, None, :])
        x = x + self.project(y.transpose(1, 2).reshape(batch, length, width))
        logits = self.table(x)
        return {"logits": logits, "best": logits.argmax(-1), "hidden": (x, None, [logits.mean((1, 2))])}


def test_attention_with_tied_weights_named_inputs_and_nested_outputs_agrees(tmp_path):
    model = Attention()
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, 5:] = False
    quantized = quantized_by_hand(model, torch.randint(0, 32, (3, 9)), mask=mask)
    result = export(quantized, tmp_path / "m.onnx")
    assert [output.name for output in result.outputs] == ["logits", "best", "hidden_0", "hidden_2_0"]
    assert result.relative_difference < 1e-5
    assert [value.name for value in onnx.load(result.path).graph.input] == ["tokens", "mask"]
    assert weights(result.path) == {
        "packed.weight": ("UINT4", "FLOAT", ["MatMul"], {"axis": 0, "block_size": 32}),
        "project.weight": ("INT8", "FLOAT", ["MatMul"], {"axis": 1}),
        # One copy of the codes serves the table, which reads rows, and the layer, which multiplies by columns.
        "table.weight": ("INT4", "FLOAT", ["Gather", "Transpose"], {"axis": 0}),
    }
    # ONNX Runtime rounds the inputs of these layers to 8 bits, unless told not to: its choice, and reported.
    assert max(output.relative_difference for output in result.default_outputs) > 1e-3
    assert "session.qdq_matmulnbits_accuracy_level" in str(result)


def test_a_float16_network_agrees(tmp_path):
    model = nn.Sequential(Conv(8, 3, 3, 3), nn.ReLU(), nn.Flatten(), Linear(512, 10))
    with torch.no_grad():
        model[0].weight_scale.copy_(model[0].weight_scale.half())  # exact in float16; the linear layer's are not
        model[3].bias.data = model[3].bias.data.half()
    result = export(quantized_by_hand(model, torch.randn(4, 3, 8, 8).half()), tmp_path / "m.onnx")
    assert result.relative_difference < 5e-3
    assert {name: what[1:3] for name, what in weights(result.path).items()} == {
        "0.weight": ("FLOAT16", ["Conv"]),
        "3.weight": ("FLOAT", ["Cast"]),
    }


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = Conv(8, 4, 3, call=F.conv1d)
        self.up = Conv(8, 6, 3, call=F.conv_transpose1d, shares=1)
        self.grouped = Conv(6, 2, 3, call=F.conv_transpose1d, shares=None, groups=2)

    def forward(self, x):
        y = self.up(self.down(x))
        # As the pipeline does where no axis of the weight has the scales: codes [groups · rows, cols], mirrored.
        codes = self.grouped.weight().view(2, 2, 3, 3).flip(3).transpose(1, 2).reshape(6, 2, 3)
        return y, F.conv_transpose1d(y, codes, groups=2)


def test_one_dimensional_and_transposed_convolutions_agree(tmp_path):
    result = export(quantized_by_hand(Decoder(), torch.randn(4, 4, 16)), tmp_path / "m.onnx")
    assert result.relative_difference < 1e-5
    assert [output.name for output in result.outputs] == ["output_0", "output_1"]
    found = weights(result.path)
    assert found["down.weight"] == ("INT4", "FLOAT", ["Conv"], {"axis": 0})
    assert found["up.weight"] == ("INT4", "FLOAT", ["ConvTranspose"], {"axis": 1})


class Twice(nn.Module):
    """A reused layer beside float weights that nothing uses; outputs that repeat, pass through, or are no tensors."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.unused = layer, nn.Parameter(torch.randn(512, 512))

    def forward(self, x):
        y = self.layer(self.layer(x).relu())
        return y, y, x, None


def test_a_weight_takes_half_a_byte_and_is_stored_once(tmp_path):
    quantized = quantized_by_hand(Twice(Linear(512, 512)), torch.randn(4, 512))
    result = export(quantized, tmp_path / "m.onnx")
    assert result.weight_types == {"INT4": 1}
    assert 512 * 512 / 2 < result.bytes < 512 * 512 / 2 + 10_000
    assert [output.name for output in result.outputs] == ["output_0", "output_1", "output_2"]
    x = np.ones((3, 512), np.float32)
    outputs = run(result.path, x=x)
    np.testing.assert_array_equal(outputs["output_0"], outputs["output_1"])
    np.testing.assert_array_equal(outputs["output_2"], x)


def test_a_program_of_fixed_batch_size_is_checked_at_that_size():
    model = quantized_by_hand(nn.Sequential(Conv(8, 3, 3, 3)), torch.randn(3, 3, 8, 8), dynamic=False)
    five = ((torch.randn(5, 3, 8, 8),), {})
    sizes, feeds, references = verify._run_model(model, model.program, five)
    assert sizes == [len(feed["input"]) for feed in feeds] == [len(outputs[0]) for outputs in references] == [3]


def test_a_corrupted_export_is_caught_and_leaves_no_file(network, tmp_path, monkeypatch):
    read = onnx_weights._read_weight

    def corrupted(*arguments, **settings):
        weight = read(*arguments, **settings)
        return replace(weight, scale=weight.scale * np.where(np.arange(len(weight.scale)) == 1, 1.1, 1).astype("f4"))

    monkeypatch.setattr(onnx_weights, "_read_weight", corrupted)
    with pytest.raises(
        rw.ExportError, match=r"does not agree .* on 8 calibration samples.*'output' differs by at most"
    ):
        export(network, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_is_the_users_to_set(built_once, tmp_path):
    with raises(rw.ExportError, "1e-12", "tolerance"):
        export(built_once, tmp_path / "m.onnx", tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(built_once, tmp_path, monkeypatch):
    def full(model, draft, **_):
        draft.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx_ir.save", full)
    with raises(rw.ExportError, "m.onnx", "No space left"):
        export(built_once, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_mismatch_counts_predicted_classes_and_their_margins():
    expected = (np.array([[1.0, 2.0, 0.0], [0.0, 0.25, 0.0]], np.float32), np.array([[3.0, 2.0, 0.0]], np.float32))
    found = (np.array([[1.0, 2.0, 0.0], [0.5, 0.25, 0.0]], np.float32), np.array([[3.0, 2.0, 0.0]], np.float32))
    difference = verify._difference("y", expected, found, tolerance=verify.Tolerance(1e-3, 0.01))
    assert (difference.max_difference, difference.relative_difference) == (0.5, 0.5 / 3)
    assert (difference.class_disagreements, difference.largest_margin, difference.samples) == (1, 0.25, 3)
    assert not difference.passes
    assert has(difference, "'y'", 0.5, 0.17, 1, 3, 0.25)


@pytest.mark.parametrize(
    ("expected", "found", "relative"),
    [
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1e-9], math.inf),
        ([math.nan, math.inf, 1.0], [math.nan, math.inf, 1.0], 0.0),
        ([math.nan, 2.0], [1.0, 2.0], math.inf),
        ([-math.inf, 2.0], [math.inf, 2.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_zeros_and_infinities_and_nan_must_be_the_same(expected, found, relative):
    one, other = np.array(expected, np.float32), np.array(found, np.float32)
    assert (
        verify._difference("y", (one,), (other,), tolerance=verify.Tolerance(1e-3, 0.01)).relative_difference
        == relative
    )


def test_integer_outputs_are_compared_by_the_share_that_differs():
    expected = np.arange(200)
    nearly, wrong = expected.copy(), expected.copy()
    nearly[0], wrong[:3] = 7, 7
    assert verify._difference("y", (expected,), (nearly,), tolerance=verify.Tolerance(1e-3, 0.01)).passes
    assert not verify._difference("y", (expected,), (wrong,), tolerance=verify.Tolerance(1e-3, 0.01)).passes


def test_an_interrupt_or_a_mismatch_leaves_an_earlier_file_as_it_was(built_once, tmp_path, monkeypatch):
    target = tmp_path / "m.onnx"
    target.write_bytes(b"earlier")

    def interrupted(draft, *_, **__):
        assert draft.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(built_once, target)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert target.read_bytes() == b"earlier"


def test_an_earlier_file_is_replaced(built_once, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")
    result = export(built_once, str(path))
    assert list(tmp_path.iterdir()) == [path]
    assert result.bytes == path.stat().st_size > len(b"earlier")
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(run(path, input=x.numpy())["output"], built_once(x).detach().numpy(), atol=1e-4)


def test_constants_beyond_the_limit_of_a_file_go_beside_it(built_once, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST_SINGLE_FILE", 1000)
    result = export(built_once, tmp_path / "m.onnx")
    files = sorted(tmp_path.iterdir())
    assert [re.sub("[0-9a-f]{16}", "…", file.name) for file in files] == ["m.onnx", "m.onnx.….data"]
    assert result.bytes == sum(file.stat().st_size for file in files)
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(run(result.path, input=x.numpy())["output"], built_once(x).detach().numpy(), atol=1e-4)


def test_a_model_without_samples_is_checked_on_random_ones_or_on_those_given(built_once, tmp_path, monkeypatch):
    monkeypatch.setattr(built_once, "samples", None)
    result = export(built_once, tmp_path / "m.onnx")
    assert has(result.verified_on, "random", "4, 2, 1")
    result = export(built_once, tmp_path / "m.onnx", samples=torch.randn(3, 3, 8, 8))
    assert has(result.verified_on, "3, 2, 1")
    assert not has(result.verified_on, "random")
    with raises(rw.ExportError, "image", "samples="):
        export(built_once, tmp_path / "m.onnx", samples=((), {"image": torch.randn(3, 3, 8, 8)}))


def test_nothing_is_printed_or_warned(built_once, exported, tmp_path, capfd):
    export(built_once, tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("model", ("model", "no suffix", ".onnx", ".rw")),
        ("model.pt", ("model.pt", "'.pt'", ".onnx", ".rw")),
        ("absent/m.onnx", ("absent", "m.onnx")),
        ("d.onnx", ("d.onnx", "folder")),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_any_work(tmp_path, path, facts):
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(rw.ExportError) as caught:
        export(None, tmp_path / path)  # what is exported is looked at last
    assert all(fact in str(caught.value) for fact in facts)


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(exporters, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(rw.ExportError, match=r'needs onnxscript.*pip install "roundwise\[onnx\]"'):
        export(None, tmp_path / "m.onnx")


def test_bfloat16_is_refused_with_the_way_out(tmp_path):
    model = nn.Sequential(Conv(8, 3, 3, 3))
    with pytest.raises(rw.ExportError, match=r"bfloat16.*model\.float\(\)"):
        export(quantized_by_hand(model, torch.randn(2, 3, 8, 8).bfloat16()), tmp_path / "m.onnx")


def test_an_operation_unknown_to_onnx_is_named(tmp_path):
    class Strange(nn.Sequential):
        def forward(self, x):
            return torch.linalg.eigvalsh(super().forward(x)[:, 0])

    with pytest.raises(rw.ExportError, match="eigh"):
        export(quantized_by_hand(Strange(Conv(8, 3, 3, 3)), torch.randn(2, 3, 8, 8)), tmp_path / "m.onnx")


def test_the_words_about_a_custom_operation_recommend_what_works(tmp_path):
    @torch.library.custom_op("tested::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    cube.register_fake(torch.empty_like)

    class Custom(nn.Sequential):
        def forward(self, x):
            return cube(super().forward(x))

    samples = torch.randn(8, 4)
    quantized = rw.quantize(Custom(nn.Linear(4, 3)).eval(), samples, quantizing(rounding=rw.rounding.Nearest()))
    with pytest.raises(rw.ExportError, match=r"tested::cube") as caught:
        export(quantized, tmp_path / "m.onnx")
    assert "torch.export.save" in str(caught.value)
    with pytest.raises(rw.FileFormatError):
        quantized.save(tmp_path / "m.rw")
    torch.export.save(quantized.program, tmp_path / "m.pt2")
    again = torch.export.load(tmp_path / "m.pt2").module()
    assert torch.equal(again(samples), quantized(samples))


def test_an_output_that_is_no_tensor_is_named(tmp_path):
    class Constant(nn.Sequential):
        def forward(self, x):
            return super().forward(x), 3

    with pytest.raises(rw.ExportError, match="returns the constant 3"):
        export(quantized_by_hand(Constant(Conv(8, 3, 3, 3)), torch.randn(2, 3, 8, 8)), tmp_path / "m.onnx")


def test_damaged_codes_are_refused_by_name():
    codes = torch.tensor([[1, 9]], dtype=torch.int8)
    arguments = {"codes": codes, "scale": 0.1, "zero_point": 0, "qmin": -8, "qmax": 7, "dtype": torch.float32}
    with pytest.raises(rw.ExportError, match=r"'0\.weight_codes'.* to 9, outside of its grid, -8 to 7"):
        onnx_weights._read_weight("0.weight_codes", dialect.DEQUANTIZE, arguments, TARGETS["ort-cpu"])


# --------------------------------------------------------------------------------------- through the whole pipeline


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, padding="same", bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.depthwise = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, image):
        x = self.depthwise(self.stem(image)).relu()
        x = self.head(self.up(x))
        return {"masks": x, "classes": x.mean((2, 3))}


def test_a_quantized_segmenter_of_all_granularities_agrees(tmp_path):
    recipe = quantizing(
        rounding=rw.rounding.Nearest(),
        overrides={
            "depthwise": rw.Weights(bits=8, symmetric=False),
            "up": rw.Weights(granularity=rw.PerGroup(8)),
            "head": rw.Weights(bits=3, granularity=rw.PerTensor(), symmetric=False),
        },
    )
    quantized = rw.quantize(Segmenter().eval(), torch.randn(16, 4, 8, 8), recipe)
    result = export(quantized, tmp_path / "m.onnx")
    assert result.relative_difference < 1e-5
    assert [output.name for output in result.outputs] == ["masks", "classes"]
    assert [value.name for value in onnx.load(result.path).graph.input] == ["image"]
    assert result.weight_types == {"INT4": 2, "UINT4": 1, "UINT8": 1}
    feeds = {name: feeds for name, (_, _, feeds, _) in weights(result.path).items()}
    assert feeds["stem.0.weight"] == feeds["depthwise.weight"] == feeds["head.weight"] == ["Conv"]
    properties = {entry.key: entry.value for entry in onnx.load(result.path).metadata_props}
    assert rw.Recipe.from_dict(json.loads(properties["roundwise.recipe.settings"])) == recipe


def test_a_saved_and_loaded_model_exports_without_samples(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()
    quantized = rw.quantize(model, torch.randn(16, 3, 8, 8), quantizing(rounding=rw.rounding.Nearest()))
    quantized.save(tmp_path / "m.rw")
    result = export(rw.load(tmp_path / "m.rw"), tmp_path / "m.onnx")
    assert has(result.verified_on, "random", 4)
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(run(result.path, input=x.numpy())["output"], quantized(x).numpy(), atol=1e-5)
