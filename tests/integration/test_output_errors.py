"""The report's errors of outputs measure something, whatever the outputs are."""

import math

import pytest
import torch
from recipes import quantizing
from torch import nn

import roundwise as rw

SIZES = torch.arange(1.0, 6.0) * 1e5


class Masked(nn.Module):
    """Two layers whose outputs end in a function of them and a mask."""

    def __init__(self, end):
        super().__init__()
        self.first, self.second, self.end = nn.Linear(6, 16), nn.Linear(16, 5), end

    def forward(self, x, kept):
        return self.end(self.second(torch.relu(self.first(x))), kept)


def reported(end):
    """The report of a coarse quantization, and the outputs of both networks with the mask."""
    torch.manual_seed(0)
    x, kept, model = torch.randn(64, 6), torch.rand(64, 5) > 0.3, Masked(end).eval()
    quantized = rw.quantize(model, (x, kept), quantizing(rw.Weights(bits=2), rw.rounding.Nearest()))
    with torch.no_grad():
        return quantized.report, model(x, kept), quantized(x, kept), kept


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min, -1e9, -1e4])
def test_a_mask_in_the_outputs_does_not_hide_the_error(fill):
    report, wanted, found, kept = reported(lambda y, kept: y.masked_fill(~kept, fill))
    true = float((wanted - found)[kept].square().sum() / wanted[kept].square().sum())
    assert report.output_error == pytest.approx(true, rel=1e-3)


def test_a_large_output_does_not_hide_the_error_of_a_small_one():
    report, wanted, found, _ = reported(lambda y, kept: {"large": kept * SIZES, "small": y})
    true = float((wanted["small"] - found["small"]).square().sum() / wanted["small"].square().sum())
    assert report.output_error == pytest.approx(true, rel=1e-3)
    assert [(output.name, output.error > 0) for output in report.outputs] == [("large", False), ("small", True)]
    joined, *_ = reported(lambda y, kept: torch.cat([kept * SIZES, y], 1))
    assert any(f"{true:.3g}" in note for note in joined.notes)
    assert f"{true:.3g}" in str(joined)


def test_a_number_as_output_has_an_error():
    report, wanted, found, _ = reported(lambda y, kept: y.sum().item())
    assert isinstance(found, float)
    assert 0.1 < report.output_error / ((wanted - found) / wanted) ** 2 < 10


def test_the_error_of_chosen_classes_is_the_share_that_differs():
    report, wanted, found, _ = reported(lambda y, kept: y.argmax(1))
    assert report.output_error == pytest.approx(float((wanted != found).float().mean()))
    assert report.outputs[0].whole


def test_a_mask_that_depends_on_the_weights_is_compared_too():
    report, *_ = reported(lambda y, kept: y.masked_fill(y < y.topk(2, 1).values[:, -1:], -math.inf))
    assert report.output_error == math.inf
    assert rw.Report.from_dict(report.as_dict()).outputs[0].name == "output"


def test_large_finite_values_in_a_layer_are_no_infinity():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        model[0].weight *= 1e20
        model[2].weight *= 1e-20
    report = rw.quantize(model, torch.randn(64, 8), quantizing(rounding=rw.rounding.Nearest())).report
    assert 0 < report.output_error < 0.1
    assert all(0 < layer.error < 0.1 for layer in report.layers)
