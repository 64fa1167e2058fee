"""What an exported program must be to become a graph, and what capture leaves out of it."""

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn
from torch.export import Dim

import roundwise as rw

NEAREST = quantizing(rounding=rw.rounding.Nearest())
IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_program_with_two_dynamic_dimensions_keeps_them_and_their_ranges():
    model = nn.Conv2d(3, 4, 3).eval()
    dynamic = ({0: Dim("batch", max=9), 2: Dim("height", min=4, max=8)},)
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=dynamic)
    quantized = rw.quantize(program, IMAGES, quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    for batch, height in ((1, 4), (9, 8)):
        x = torch.randn(batch, 3, height, 6)
        torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)
    for batch, height, width, wrong in ((10, 6, 6, 10), (4, 9, 6, 9), (4, 3, 6, 3), (4, 6, 7, 7)):
        with raises(rw.ModelError, wrong):
            quantized(torch.randn(batch, 3, height, width))


def test_samples_unlike_the_inputs_of_a_program_are_refused_since_numbers_in_it_come_from_those():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            y = self.layer(x.float())
            return y.sum((2, 3)) / y.shape[2]

    program = torch.export.export(Mean().eval(), (IMAGES,), dynamic_shapes=({0: Dim("batch")},))
    with raises(rw.CalibrationError, "dimension 3", 7, "float32 [samples, 3, 6, 6]"):
        rw.quantize(program, torch.randn(4, 3, 6, 7), NEAREST)
    with raises(rw.CalibrationError, "uint8", "float32 [samples, 3, 6, 6]"):
        rw.quantize(program, IMAGES.to(torch.uint8), NEAREST)


def test_a_size_that_follows_from_another_by_arithmetic_is_refused():
    half = Dim("half", min=2)
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (IMAGES,), dynamic_shapes=({2: 2 * half},))
    with raises(rw.CaptureError, "dimension 2", "torch.export.Dim"):
        rw.quantize(program, IMAGES, NEAREST)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x) + torch.rand_like(x)


def test_a_model_that_draws_random_numbers_is_refused_with_the_operation_and_the_place():
    with raises(rw.CaptureError, "aten.rand_like.default", "test_program.py"):
        rw.quantize(Noisy().eval(), torch.randn(4, 6), NEAREST)


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        x.mul_(2)
        return self.layer(x) + x


def test_a_write_to_the_input_is_left_out_and_the_operations_after_it_read_what_was_written():
    model, x = Overwriting().eval(), torch.randn(4, 6)
    quantized = rw.quantize(model, x.clone(), quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    given = x.clone()
    assert torch.allclose(quantized(given), model(x.clone()), atol=1e-3)
    assert torch.equal(given, x)


class Counting(nn.Module):
    """Its outputs depend on how often it was called."""

    def __init__(self, outputs):
        super().__init__()
        self.layer, self.outputs, self.calls = nn.Linear(6, 6), outputs, 0

    def forward(self, x):
        self.calls += 1
        return self.outputs(self.layer(x), self.calls)


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param(lambda y, calls: [y] * calls, id="more outputs"),
        pytest.param(lambda y, calls: y[:, : 6 - min(calls, 5)], id="another shape"),
        pytest.param(lambda y, calls: y * calls, id="other values"),
        pytest.param(lambda y, calls: (y, calls), id="another number beside the tensor"),
    ],
)
def test_a_model_whose_outputs_depend_on_earlier_calls_is_refused(outputs):
    with raises(rw.CaptureError, "state"):
        rw.quantize(Counting(outputs).eval(), torch.randn(4, 6), NEAREST)
