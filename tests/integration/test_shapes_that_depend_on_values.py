"""Shapes that depend on values can differ between the float and the quantized network: nothing can be compared then."""

import math

import pytest
import torch
from facts import raises
from torch import nn

import roundwise as rw

SAMPLES = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
SOLVERS = (rw.rounding.Nearest(), rw.rounding.GramAdaRound(), rw.rounding.AdaRound(iterations=3))


class Masked(nn.Module):
    """Rows, or numbers, behind a mask that follows the values of the first layer or those of the input."""

    def __init__(self, outputs, *, by_input=False):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)
        self.outputs, self.by_input = outputs, by_input

    def forward(self, x):
        y = self.first(x)
        mask = (x if self.by_input else y) > 0
        return tuple(
            {"all": lambda: y, "positive": lambda: y[mask], "second": lambda: self.second(y[mask[:, 0]])}[output]()
            for output in self.outputs
        )


def quantized(model, rounding, **settings):
    return rw.quantize(model.eval(), SAMPLES, rw.Quantize(rw.Weights(bits=3), rounding, **settings))


@pytest.mark.parametrize("rounding", SOLVERS, ids=lambda it: type(it).__name__)
def test_a_layer_whose_inputs_are_not_as_many_in_both_networks_is_an_error_that_names_it(rounding):
    with raises(rw.ModelError, "'second'", "8]", "--override second=float"):
        quantized(Masked(["second"]), rounding)


def test_the_error_names_a_way_out_that_works():
    report = quantized(Masked(["second"]), SOLVERS[0], overrides={"second": None}).report
    assert [layer.name for layer in report.layers] == ["first"]
    assert math.isnan(report.output_error)


def test_an_output_of_two_shapes_is_left_out_of_the_error_and_the_report_says_so():
    report = quantized(Masked(["all", "positive"]), SOLVERS[0]).report
    alone = quantized(Masked(["all"]), SOLVERS[0]).report
    assert report.output_error == alone.output_error > 0
    (note,) = report.notes
    assert "'output_1'" in note
    assert alone.notes == ()


def test_without_an_output_that_can_be_compared_no_error_is_measured():
    model = quantized(Masked(["positive"]), SOLVERS[0])
    assert math.isnan(model.report.output_error)
    assert model.report.stages[-1].output_error is None
    assert "nan" not in str(model.report)
    assert len(model(SAMPLES)[0]) > 0


def test_where_the_mask_follows_the_input_all_is_measured():
    report = quantized(Masked(["positive", "second"], by_input=True), SOLVERS[1]).report
    assert 0 < report.output_error < 1
    assert len(report.layers) == 2
    assert report.notes == ()
