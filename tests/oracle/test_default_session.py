"""A file that is kept gives the model's results in ONNX Runtime's default session, as users create it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw
from roundwise.exporters import export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
translate = pytest.importorskip("roundwise.exporters.onnx.translate")

NEAREST = rw.rounding.Nearest()
IMAGES = torch.randn(16, 3, 9, 9, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(12, 20, 16, generator=torch.Generator().manual_seed(0))
EIGHT = {"weights": rw.Weights(bits=8), "activations": rw.Activations(bits=8)}
SCALAR = {"weights": rw.Weights(bits=8, granularity=rw.PerTensor()), "activations": rw.Activations(bits=8)}
WIDE = {"weights": rw.Weights(bits=16), "activations": rw.Activations(bits=16)}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def default_session(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = (entry.name for entry in session.get_inputs())
    feeds = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feeds)[0])


def difference(model, inputs, tmp_path, **settings):
    """The relative difference of the default session from the quantized network, and the report of the run."""
    quantized = rw.quantize(model.eval(), inputs, quantizing(rounding=NEAREST, **settings))
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    path = export(quantized, tmp_path / "m.onnx", samples=(inputs, {})).path
    with torch.no_grad():
        wanted = quantized(*inputs)
    return float((default_session(path, *inputs) - wanted).abs().max() / wanted.abs().max()), quantized.report


# ------------------------------------------------------------------------------------------------------------- biases


def switched_off(layer, channels=2, size=1e-12, bias=2.0):
    """A layer some of whose channels have no weights to speak of, and a bias."""
    dims = layer.weight.dim()
    with torch.no_grad():
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        layer.weight.index_fill_(axis, torch.arange(channels), 0.0).add_(
            size * torch.ones(dims * [1]) * (layer.weight == 0)
        )
        layer.bias[:channels] = bias
    return layer


LAYERS = {
    "convolution": lambda **off: nn.Sequential(switched_off(nn.Conv2d(3, 8, 3), **off), nn.ReLU(), nn.Conv2d(8, 4, 3)),
    "transposed": lambda **off: nn.Sequential(
        switched_off(nn.ConvTranspose2d(3, 8, 3), **off), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ),
    "after pooling": lambda **off: nn.Sequential(
        nn.MaxPool2d(2), switched_off(nn.Conv2d(3, 8, 3), **off), nn.ReLU6(), nn.Conv2d(8, 4, 1)
    ),
    "linear": lambda **off: nn.Sequential(
        nn.Flatten(), switched_off(nn.Linear(243, 8), **off), nn.ReLU(), nn.Linear(8, 4)
    ),
}


@pytest.mark.parametrize(
    ("layer", "settings"),
    [
        ("convolution", EIGHT),
        ("convolution", SCALAR),
        ("linear", WIDE),
        *(
            pytest.param(layer, settings, marks=pytest.mark.slow)
            for layer, settings in (
                ("transposed", EIGHT),
                ("after pooling", EIGHT),
                ("linear", EIGHT),
                ("convolution", WIDE),
            )
        ),
    ],
)
def test_a_bias_of_a_channel_that_is_switched_off_is_kept(layer, settings, tmp_path):
    found, _ = difference(LAYERS[layer](), IMAGES, tmp_path, **settings)
    assert found < 0.02


@pytest.mark.parametrize("settings", [EIGHT, SCALAR], ids=["8 bits", "per tensor"])
def test_a_bias_that_is_huge_beside_the_weights_is_kept(settings, tmp_path):
    found, _ = difference(LAYERS["convolution"](size=0.1, bias=1e6), IMAGES, tmp_path, **settings)
    assert found < 0.02


def test_a_raised_scale_changes_no_other_channel_and_is_reported(tmp_path):
    model = LAYERS["convolution"]().eval()
    quantized = rw.quantize(model, IMAGES, quantizing(rounding=NEAREST, **EIGHT))
    alone = rw.quantize(model, IMAGES, quantizing(rounding=NEAREST, weights=rw.Weights(bits=8)))
    (first, _), scales = quantized.report.layers, [one.weights["0"].scale for one in (quantized, alone)]
    assert "2 of 8" in first.note
    assert torch.equal(scales[0][2:], scales[1][2:])
    assert (scales[0][:2] > scales[1][:2]).all()
    steps = 2.0 / (scales[0][:2].double() * quantized.report.activations[0].scale)
    assert (steps < 2**31).all()
    assert quantized.report.output_error < 0.01
    assert export(quantized, tmp_path / "m.onnx").bytes


def test_sums_of_very_many_products_do_not_overflow(tmp_path):
    layer = nn.Linear(70_000, 2)
    with torch.no_grad():
        layer.weight.fill_(0.01)
    model = nn.Sequential(layer, nn.ReLU(), nn.Linear(2, 2))
    assert difference(model, torch.full((2, 70_000), 3.0), tmp_path, **EIGHT)[0] < 0.01


# ------------------------------------------------------------------------------------------------ rewrites of a runtime


POOLS = {
    "zeros before a maximum": nn.Sequential(nn.Conv2d(3, 8, 3), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)),
    "zeros, then a maximum with padding": nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2, 1), nn.ReLU()
    ),
    "mean over windows beyond the border": nn.Sequential(nn.Conv2d(3, 8, 2), nn.ReLU(), nn.AvgPool2d(3, 2, 1, True)),
    "mean without padding beyond the border": nn.Sequential(nn.Conv2d(3, 8, 2), nn.AvgPool2d(3, 2, ceil_mode=True)),
}


@pytest.mark.parametrize(("pool", "settings"), in_thirds(list(POOLS), {"8 bits": EIGHT, "4-bit weights": {}}))
def test_pooling_agrees(pool, settings, tmp_path):
    model = nn.Sequential(POOLS[pool], nn.Conv2d(8, 4, 3))
    assert difference(model, IMAGES - 1, tmp_path, **settings)[0] < 0.02


def test_a_file_from_which_the_default_session_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(translate, "use_safe_forms", lambda *_: None)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1), nn.Conv2d(8, 4, 3))
    quantized = rw.quantize(model.eval(), IMAGES - 1, quantizing(rounding=NEAREST))
    with pytest.raises(rw.ExportError, match="ORT_DISABLE_ALL"):
        export(quantized, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    kept = export(quantized, tmp_path / "m.onnx", tolerance=100.0)
    assert max(output.relative_difference for output in kept.default_outputs) > 0.01


# ----------------------------------------------------------------------------------------------------------- attention


def heads(x, count):
    return x.reshape(x.shape[0], 20, count, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).reshape(x.shape[0], 20, 16)


def windows(x):
    return x.reshape(x.shape[0], 4, 5, 2, 8).permute(0, 1, 3, 2, 4)


ATTENTION = F.scaled_dot_product_attention
TRIANGLE = torch.ones(20, 20, dtype=torch.bool).tril(-1)  # the first query sees no key
FORMS = {
    "3 dimensions": lambda q, k, v, mask: ATTENTION(q, k, v),
    "3 dimensions, causal": lambda q, k, v, mask: ATTENTION(q, k, v, is_causal=True),
    "3 dimensions, mask of 2": lambda q, k, v, mask: ATTENTION(q, k, v, TRIANGLE),
    "3 dimensions, padding": lambda q, k, v, mask: ATTENTION(q, k, v, mask[:, None]),
    "4 dimensions, padding": lambda q, k, v, mask: joined(
        ATTENTION(heads(q, 2), heads(k, 2), heads(v, 2), mask[:, None, None])
    ),
    "4 dimensions, added": lambda q, k, v, mask: joined(
        ATTENTION(heads(q, 2), heads(k, 2), heads(v, 2), torch.where(mask, 0.0, -math.inf)[:, None, None])
    ),
    "shared keys, causal": lambda q, k, v, mask: joined(
        ATTENTION(heads(q, 4), heads(k[..., :8], 2), heads(v[..., :8], 2), is_causal=True, enable_gqa=True)
    ),
    "5 dimensions": lambda q, k, v, mask: (
        ATTENTION(windows(q), windows(k), windows(v), scale=0.3).permute(0, 1, 3, 2, 4).reshape(q.shape[0], 20, 16)
    ),
}


class Attention(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.project, self.out, self.form = nn.Linear(16, 48), nn.Linear(16, 16), form

    def forward(self, x, mask):
        return self.out(self.form(*self.project(x).chunk(3, -1), mask))


@pytest.mark.parametrize("form", in_thirds(list(FORMS)))
def test_attention_of_any_form_agrees(form, tmp_path):
    mask = torch.rand(12, 20) > 0.4
    mask[3] = False  # a sequence of padding only
    assert difference(Attention(FORMS[form]), (SEQUENCES, mask), tmp_path)[0] < 0.05


def test_fourier_transforms_agree(tmp_path):
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(9, 4)

        def forward(self, x):
            return self.last(torch.fft.rfft(self.first(x)).abs())

    assert difference(Spectrum(), SEQUENCES, tmp_path)[0] < 0.05


# ------------------------------------------------------------------------------------------------ proofs of nothing


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_comparison_that_proves_nothing_is_refused(number, share, tmp_path):
    quantized = rw.quantize(LAYERS["linear"]().eval(), IMAGES, quantizing(rounding=NEAREST))
    samples = IMAGES.masked_fill(torch.rand(IMAGES.shape) < share, number)
    with pytest.raises(rw.ExportError, match=r"proves nothing|nothing can be compared"):
        export(quantized, tmp_path / "m.onnx", samples=samples)
    with pytest.raises(rw.ExportError, match=r"\[0, 3, 9, 9\]"):
        export(quantized, tmp_path / "m.onnx", samples=IMAGES[:0])
    assert not list(tmp_path.iterdir())


def test_a_mask_in_the_outputs_does_not_hide_a_difference(tmp_path, monkeypatch):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x, mask):
            return self.layer(x).masked_fill(~mask[..., None], -1e9)

    mask = torch.rand(12, 20) > 0.4
    quantized = rw.quantize(Masked().eval(), (SEQUENCES, mask), quantizing(rounding=NEAREST))
    file = export(quantized, tmp_path / "m.onnx")
    assert np.isfinite(file.relative_difference)
    with pytest.raises(rw.ExportError):  # with -1e9 among the values, any file would pass this
        export(quantized, tmp_path / "n.onnx", tolerance=1e-10)
