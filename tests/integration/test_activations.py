"""Quantized activations, from the recipe to what the network computes, saves and exports."""

import copy
import functools
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from facts import has, raises
from recipes import quantizing
from thirds import in_thirds
from torch import nn
from torch.utils import _pytree as pytree

import roundwise as rw


class Net(nn.Module):
    """Residuals, a concatenation, pooling, a function that is no clamp, and two outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.left, self.right = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )
        self.join, self.head = nn.Conv2d(12, 8, 3, groups=4), nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        y = F.relu(self.left(x) + x)
        z = torch.cat([y, F.silu(self.right(x))], 1)
        z = F.max_pool2d(self.join(z).relu(), 2)
        return self.head(z.mean((2, 3))), y


IMAGES = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))
MODES = pytest.mark.parametrize("adapt", [True, False], ids=["ranges-first", "ranges-after"])


@functools.cache
def captured():
    """The network, for all tests that need no other."""
    return rw.capture(Net().eval(), IMAGES[:2])


def quantized(adapt=True, rounding=None, model=None, **settings):
    recipe = quantizing(
        rounding=rounding or rw.rounding.Nearest(),
        activations=rw.Activations(adapt_rounding=adapt, **settings),
        batch_size=16,
    )
    return rw.quantize(model or captured(), IMAGES, recipe)


@MODES
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_reports_error_is_what_the_network_really_does(adapt, bits):
    model, result = Net().eval(), quantized(adapt, bits=bits)
    with torch.no_grad():
        pairs = list(zip(model(IMAGES), result(IMAGES), strict=True))
    error = sum(float((one - other).square().sum()) for one, other in pairs)
    energy = sum(float(one.square().sum()) for one, _ in pairs)
    assert result.report.output_error == pytest.approx(error / energy, rel=0.02)


@MODES
def test_values_between_operations_lie_on_their_grids(adapt):
    result = quantized(adapt, bits=4)
    seen = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            seen[node.name] = value
            return value

    with torch.no_grad():
        Watch(result.graph_module).run(IMAGES)
    assert len(result.report.activations) == 7
    readers = {node.name: [user.name for user in node.users] for node in result.graph_module.graph.nodes}
    for activation in result.report.activations:
        (codes,) = readers[activation.name]  # nobody reads the tensor itself any more
        (real,) = readers[codes]
        assert 0 <= seen[codes].min() <= seen[codes].max() <= 15
        assert seen[real].unique().numel() <= 16


def test_what_is_joined_shares_scale_and_zero_point_and_covers_both():
    by_name = {activation.name: activation for activation in quantized().report.activations}
    shared = [activation for activation in by_name.values() if activation.shared_with]
    assert len(shared) == 2
    assert len({(activation.scale, activation.zero_point) for activation in shared}) == 1
    low = min(activation.low for activation in shared)
    assert low < 0  # of the SiLU
    assert by_name["x"].shared_with == ()


def test_rounding_adapts_to_quantized_inputs_only_if_it_is_told_to():
    solver = rw.rounding.CoordinateDescent()
    plain = rw.quantize(captured(), IMAGES, quantizing(rounding=solver, batch_size=16))
    before, after = (quantized(adapt, solver, bits=3) for adapt in (True, False))
    codes = [{name: weight.codes for name, weight in model.weights.items()} for model in (plain, before, after)]
    assert all(torch.equal(codes[0][name], codes[2][name]) for name in codes[0])
    assert not all(torch.equal(codes[0][name], codes[1][name]) for name in codes[0])


def test_more_bits_make_the_error_smaller():
    errors = [quantized(bits=bits).report.output_error for bits in (2, 4, 8)]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    without = rw.quantize(captured(), IMAGES, quantizing(rounding=rw.rounding.Nearest())).report.output_error
    assert quantized(bits=16).report.output_error == pytest.approx(without, rel=0.01)


def test_the_model_and_its_samples_stay_as_they_were():
    model, images = Net().eval(), IMAGES.clone()
    before = copy.deepcopy(model.state_dict())
    quantized(model=model)
    assert torch.equal(images, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@MODES
def test_activations_survive_a_file(adapt, tmp_path):
    result = quantized(adapt)
    result.save(tmp_path / "net.rw")
    back = rw.load(tmp_path / "net.rw")
    assert back.report == result.report
    assert back.recipe == result.recipe
    for one, other in zip(result(IMAGES), back(IMAGES), strict=True):
        assert torch.equal(one, other)


@MODES
def test_spilling_to_disk_changes_nothing(adapt):
    recipe = quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations(adapt_rounding=adapt), batch_size=16)
    spilled = rw.quantize(captured(), IMAGES, rw.Recipe.from_dict({**recipe.as_dict(), "memory_budget": 0}))
    kept = rw.quantize(captured(), IMAGES, recipe)
    assert spilled.report.activations == kept.report.activations
    assert torch.equal(spilled(IMAGES)[0], kept(IMAGES)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_networks_in_another_precision_keep_their_dtype_and_do_what_the_report_says(dtype):
    recipe = quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations(bits=4))
    model = Net().eval().to(dtype)
    result = rw.quantize(model, IMAGES.to(dtype), recipe)
    assert result(IMAGES.to(dtype))[0].dtype == dtype
    with torch.no_grad():
        pairs = [
            (y.double(), z.double()) for y, z in zip(model(IMAGES.to(dtype)), result(IMAGES.to(dtype)), strict=True)
        ]
    error = sum(float((y - z).square().sum()) for y, z in pairs) / sum(float(y.square().sum()) for y, _ in pairs)
    assert result.report.output_error == pytest.approx(error, rel=0.05)


def test_of_a_single_layer_the_input_is_quantized_and_the_output_is_not():
    result = quantized(model=nn.Sequential(nn.Linear(12, 4)).eval())
    assert len(result.report.activations) == 1  # the input itself


# ------------------------------------------------------------------------------------------------------ bad input


class Dead(nn.Module):
    """A layer whose output is cut off entirely."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 4), nn.Linear(4, 2)
        nn.init.constant_(self.a.bias, -100.0)

    def forward(self, x):
        return self.b(self.a(x).relu())


class Scan(nn.Module):
    """A recurrence that starts from zeros."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(12, 6), nn.Linear(12, 6), nn.Linear(6, 2)

    def forward(self, x):
        state = 0.0 * x[:, 0, 0, :6]
        for row in x[:, 0, :3].unbind(1):
            state = state * self.a(row).sigmoid() + self.b(row)
        return self.out(state)


class Partly(nn.Module):
    """A concatenation, a part of which is always 0."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(12, 4), nn.Linear(12, 4), nn.Linear(8, 2)
        nn.init.constant_(self.a.bias, -100.0)

    def forward(self, x):
        return self.out(torch.cat([self.a(x).relu(), self.b(x).relu()], -1))


class Empty(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x):
        return self.a(x[:, :0].sigmoid()), self.b(x)


class Tiny(nn.Module):
    """Values so small that no scale in float32 fits."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        return self.b(x) + self.b(self.a(x).sigmoid() * 1e-38)


class Masked(nn.Module):
    """Attention over rows, of which the last ones are masked by adding a number; biases are added to the mask."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x):
        x = x[:, 0]
        mask = torch.zeros_like(x).masked_fill(torch.arange(12) > 8, self.number)
        bias = mask + self.value(x) * x
        scores = self.query(x) @ self.key(x).transpose(1, 2) + bias
        return self.out(scores.softmax(-1) @ self.value(x))


IN_FLOAT = {
    "a zero state": (Scan, {"mul"}),
    "a dead branch": (Dead, {"relu"}),
    "empty": (Empty, {"sigmoid"}),
    "too small": (Tiny, {"mul"}),
    "masked by minus infinity": (lambda: Masked(-torch.inf), {"add"}),
    "masked by the smallest number": (lambda: Masked(torch.finfo(torch.float32).min), {"add"}),
    "masked by a large number": (lambda: Masked(-1e4), {"add"}),
}


@MODES
@pytest.mark.parametrize("case", in_thirds(IN_FLOAT))
def test_an_activation_that_no_grid_can_hold_stays_in_float_with_a_note(case, adapt):
    build, names = case
    torch.manual_seed(0)
    model = build().eval()
    result = quantized(adapt, model=model)
    assert result.report.output_error < 0.01
    assert result.report.activations
    said = [note for note in result.report.notes if "left in float" in note]
    found = set(re.findall(r"'(\w+)'", " ".join(said)))
    assert {re.sub(r"_\d+$", "", name) for name in found} == names
    assert found.isdisjoint(activation.name for activation in result.report.activations)
    with torch.no_grad():
        pairs = list(zip(pytree.tree_leaves(result(IMAGES)), pytree.tree_leaves(model(IMAGES)), strict=True))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0.2 * float(other.abs().max()) if other.numel() else 0)


def test_what_is_zero_shares_the_range_of_what_it_is_joined_with():
    torch.manual_seed(0)
    zero, other = (it for it in quantized(model=Partly().eval()).report.activations if it.shared_with)
    assert (zero.low, zero.high, zero.scale) == (0, 0, other.scale)
    assert other.high > 0


def test_samples_may_have_values_that_are_not_finite_where_the_network_does_not_compute_with_them():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.out = nn.Linear(12, 12), nn.Linear(12, 2)

        def forward(self, x, mask):
            scores = self.query(x) @ x.transpose(1, 2) + mask[:, None]
            return self.out(torch.nan_to_num(scores.softmax(-1) @ x))

    torch.manual_seed(0)
    model, rows = Attention().eval(), IMAGES[:, 0].clone()
    mask = torch.zeros(len(rows), 12).index_fill(1, torch.arange(9, 12), -torch.inf)
    recipe = quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations(), batch_size=16)
    result = rw.quantize(model, (rows, mask), recipe)
    assert result.report.output_error < 0.01
    assert any(has(note, 0, "infinity", 120, 40) for note in result.report.notes)
    torch.testing.assert_close(result(rows, mask), model(rows, mask), rtol=0, atol=0.5)
    mask[3] = -torch.inf  # every place of a sample is masked
    with raises(rw.CalibrationError, "infinity"):
        rw.quantize(nn.Sequential(nn.Linear(12, 3)).eval(), mask, recipe)


def test_a_constant_activation_that_is_not_zero_will_do():
    class Constant(Dead):
        def forward(self, x):
            return self.b(self.a(x).clamp(-1.0, -1.0))

    result = quantized(model=Constant().eval())
    assert result.report.output_error < 0.01


def test_activations_that_are_not_finite_are_an_error():
    class Infinite(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(12, 4)

        def forward(self, x):
            return self.a(1 / (x - x)), x

    with pytest.raises(rw.ModelError):
        quantized(model=Infinite().eval())


# --------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize(
    ("weight_bits", "bits", "symmetric"),
    [
        (4, 8, False),
        *(
            pytest.param(weight_bits, bits, symmetric, marks=pytest.mark.slow)
            for weight_bits, bits, symmetric in [(4, 5, False), (8, 8, False), (8, 8, True), (8, 16, False)]
        ),
    ],
)
def test_an_exported_file_quantizes_activations_as_the_network_does(tmp_path, weight_bits, bits, symmetric):
    onnx = pytest.importorskip("onnx")
    recipe = quantizing(
        weights=rw.Weights(bits=weight_bits),
        rounding=rw.rounding.Nearest(),
        activations=rw.Activations(bits=bits, symmetric=symmetric),
    )
    result = rw.quantize(captured(), IMAGES, recipe)
    exported = rw.export(result, tmp_path / "net.onnx")
    assert all(output.passes for output in exported.outputs)
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == len(result.report.activations)
    assert sum(node.op_type == "Clip" and "quantize" not in node.name for node in graph.node) >= (7 if bits == 5 else 0)


def test_onnx_runtime_fuses_8_bit_layers_into_integer_kernels(tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    recipe = quantizing(weights=rw.Weights(bits=8), rounding=rw.rounding.Nearest(), activations=rw.Activations())
    rw.export(rw.quantize(captured(), IMAGES, recipe), tmp_path / "net.onnx")
    options = runtime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 4
    runtime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("QLinearConv") >= 2


@pytest.mark.slow
def test_a_half_precision_network_is_exported_with_its_activations(tmp_path):
    pytest.importorskip("onnxruntime")
    recipe = quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations())
    result = rw.quantize(Net().eval().half(), IMAGES.half(), recipe)
    assert all(output.passes for output in rw.export(result, tmp_path / "net.onnx").outputs)


@pytest.mark.slow
def test_a_wrong_scale_cannot_hide_behind_what_quantized_activations_do_to_small_differences(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from roundwise.exporters import sensitivity
    from roundwise.exporters.onnx import weights

    monkeypatch.setattr(sensitivity, "CHANGE", 0.01)  # as if the network were deep, and so sensitive
    result = quantized(bits=4)
    exported = rw.export(result, tmp_path / "net.onnx")
    strict, wide = exported.outputs_of_weights[0], exported.outputs[0]
    assert strict.relative_difference < 1e-5 < strict.tolerance < 0.05 < wide.tolerance
    read = weights._read_weight

    def corrupted(*arguments, **settings):
        weight = read(*arguments, **settings)
        scale = weight.scale.copy()
        scale[:1] *= 1.01
        return replace(weight, scale=scale)

    monkeypatch.setattr(weights, "_read_weight", corrupted)
    with raises(rw.ExportError, "tolerance"):
        rw.export(result, tmp_path / "other.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
