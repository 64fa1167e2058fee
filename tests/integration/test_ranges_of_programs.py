"""Programs that take a range of batches, and inputs without numbers: quantized, saved, loaded and exported."""

import pytest
import torch
from facts import raises
from recipes import quantizing
from thirds import in_thirds
from torch import nn
from torch.export import Dim

import roundwise as rw

RECIPE = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest())
RANGES = [(4, None), (4, 10), (3, 4), (None, 3), (2, 2**20), (30, 64)]


@pytest.mark.parametrize("low_and_high", in_thirds(RANGES))
def test_a_program_is_tried_with_numbers_of_samples_that_it_takes(low_and_high, tmp_path):
    low, high = low_and_high
    pytest.importorskip("onnxruntime")
    model, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(64, 6)
    shapes = ({0: Dim("samples", min=low, max=high)},)
    program = torch.export.export(model, (x[: low or 2],), dynamic_shapes=shapes)
    quantized = rw.quantize(program, x, RECIPE)
    quantized.save(tmp_path / "net.rw")
    loaded = rw.load(tmp_path / "net.rw")
    assert rw.export(quantized, tmp_path / "net.onnx").max_difference < 1e-5
    for samples in {low or 1, min(high or 64, 64)}:
        with torch.no_grad():
            torch.testing.assert_close(quantized(x[:samples]), model(x[:samples]), rtol=1e-3, atol=1e-3)
        assert torch.equal(loaded(x[:samples]), quantized(x[:samples]))
    for samples in {(low or 1) - 1, (high or 0) + 1} - {0, 1}:
        with raises(rw.ModelError, samples):
            quantized(torch.zeros(samples, 6))


class Cached(nn.Module):
    """A step that appends its values to those of the steps before."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, cache):
        return torch.cat([cache, self.layer(x)], -1), cache


@pytest.mark.parametrize("shape", [(8, 0), (8, 3, 0)])
def test_an_input_without_numbers_is_an_input_like_any_other(shape, tmp_path):
    pytest.importorskip("onnxruntime")
    model, cache = Cached().eval(), torch.zeros(shape)
    x = torch.randn(8, *shape[1:-1], 4)
    quantized = rw.quantize(model, {"x": x, "cache": cache}, RECIPE)
    quantized.save(tmp_path / "net.rw")
    loaded = rw.load(tmp_path / "net.rw")
    assert rw.export(quantized, tmp_path / "net.onnx").max_difference < 1e-5
    for network in (quantized, loaded):
        y, same = network(x, cache)
        assert same.shape == shape
        torch.testing.assert_close(y, model(x, cache)[0], rtol=1e-3, atol=1e-3)


def test_samples_to_verify_on_without_any_sample_are_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    quantized = rw.quantize(nn.Linear(4, 4).eval(), torch.randn(8, 4), RECIPE)
    with raises(rw.ExportError, "[0, 4]"):
        rw.export(quantized, tmp_path / "net.onnx", samples=((torch.zeros(0, 4),), {}))
