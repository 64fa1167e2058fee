"""A model whose code decides by sizes: it is captured for the sizes for which the graph is right, or refused."""

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn
from torch.export import Dim

import roundwise as rw

IMAGES = torch.randn(24, 3, 8, 12, generator=torch.Generator().manual_seed(0))
EXACT = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest())


class Decides(nn.Module):
    """A convolution, and one more where `decide` says so of the input's sizes."""

    def __init__(self, decide):
        super().__init__()
        self.conv, self.decide = nn.Conv2d(3, 4, 3, padding=1), decide

    def forward(self, x):
        return self.conv(x) + 1 if self.decide(*x.shape) else self.conv(x)


BOTH = {"x": {2: "height", 3: "width"}}
DECISIONS = {
    "every fourth number of samples": (lambda n, c, h, w: n % 4 == 0, None, ("x.size()[0]", 4)),
    "all but every third number of samples": (lambda n, c, h, w: n % 3, None, ("x.size()[0]", 3)),
    "odd heights": (lambda n, c, h, w: h % 2, BOTH, ("x.size()[2]",)),
    "square images": (lambda n, c, h, w: h == w, BOTH, ("x.size()[2]", "x.size()[3]")),
    "as many samples as columns": (lambda n, c, h, w: n == w, BOTH, ("x.size()[0]", "x.size()[3]")),
    "images beyond 20 on both sides": (
        lambda n, c, h, w: min(h, w) > 20,
        BOTH,
        ("x.size()[2]", "x.size()[3]", 20),
    ),
    "more tokens than 30": (lambda n, c, h, w: (h // 8) * (w // 8) > 30, BOTH, ("x.size()[2]", "x.size()[3]", 30)),
    "an image that 32 divides": (lambda n, c, h, w: h % 32 == 0 and w % 32 == 0, BOTH, ("x.size()[2]", 32)),
    "a hundredth of the samples": (lambda n, c, h, w: int(n * 0.01), None, ("x.size()[0]",)),
    "tens of samples": (lambda n, c, h, w: (n // 16) % 5 == 4, None, ("x.size()[0]", 5)),
    "a limit in fractions": (lambda n, c, h, w: n / 8 > 6.5, None, ("x.size()[0]",)),
    "no fewer than 50 samples": (lambda n, c, h, w: max(n, 50) > 50, None, ("x.size()[0]", 50)),
    "an area that 96 divides": (lambda n, c, h, w: h * w % 96 == 0, BOTH, ("x.size()[2]", "x.size()[3]")),
}


@pytest.mark.parametrize(("decide", "dynamic", "facts"), DECISIONS.values(), ids=DECISIONS)
def test_a_decision_by_sizes_that_leaves_no_range_is_refused(decide, dynamic, facts):
    with raises(rw.CaptureError, *facts):
        rw.quantize(Decides(decide).eval(), IMAGES, EXACT, dynamic=dynamic)


def test_conditions_of_pytorch_that_change_nothing_refuse_nothing():
    """`3 * 8 == h` and `n != 12` are such conditions here: the model computes the same on both sides."""
    model = Decides(lambda n, c, h, w: False).eval()
    model.decide = lambda n, c, h, w: (h == 3 * n) and False
    quantized = rw.quantize(model, IMAGES, EXACT, dynamic=BOTH)
    for shape in ((2, 3, 6, 5), (12, 3, 12, 12), (8, 3, 24, 8), (1, 3, 3, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)


def test_sizes_that_the_model_refuses_are_no_reason_to_refuse_it():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return torch.cat([y, nn.functional.interpolate(nn.functional.avg_pool2d(y, 2), scale_factor=2)], 1)

    model = Skips().eval()
    quantized = rw.quantize(model, IMAGES, EXACT, dynamic=BOTH)
    x = torch.randn(5, 3, 16, 6)
    torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)
    for network in (model, quantized):
        with pytest.raises(RuntimeError, match=r"7"):
            network(torch.randn(5, 3, 7, 6))


@pytest.mark.parametrize(
    ("decide", "condition"),
    [(lambda n, c, h, w: n % 4 == 0, "x.size()[0] % 4 != 0"), (lambda n, c, h, w: min(h, w) > 20, "x.size()[3]")],
    ids=["samples", "images"],
)
def test_a_program_that_holds_for_some_sizes_alone_is_refused(decide, condition):
    dims = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    program = torch.export.export(Decides(decide).eval(), (IMAGES[:23],), dynamic_shapes=dims)
    with raises(rw.CaptureError, condition):
        rw.quantize(program, IMAGES[:23], EXACT)


def test_a_program_in_which_sizes_must_differ_is_quantized():
    model = Decides(lambda n, c, h, w: h == w and False).eval()
    dims = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)
    quantized = rw.quantize(torch.export.export(model, (IMAGES[:23],), dynamic_shapes=dims), IMAGES[:23], EXACT)
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)


FAR_AND_COMPARED = {
    "every 5000th height": (lambda n, c, h, w: h % 5000 == 0, "x.size()[2]", 5000),
    "every 4096th height, even widths": (
        lambda n, c, h, w: h % 4096 == 0 and w % 2 == 0,
        "x.size()[2]",
        4096,
    ),
    "the cube of the height": (lambda n, c, h, w: h**3 > 10**12, "x.size()[2]", 10001),
    "no more than so many columns": (lambda n, c, h, w: max(w, 3000) > 3000, "x.size()[3]", 3001),
}


@pytest.mark.parametrize(
    ("decide", "facts"), [(it[0], it[1:]) for it in FAR_AND_COMPARED.values()], ids=FAR_AND_COMPARED
)
def test_a_decision_by_a_far_size_is_found_by_the_numbers_in_it(decide, facts):
    with raises(rw.CaptureError, *facts):
        rw.quantize(Decides(decide).eval(), IMAGES, EXACT, dynamic=BOTH)


FAR_AND_LARGE = {
    "the area": (lambda n, c, h, w: h * w > 10**7, BOTH, {"height": 3162, "width": 3162}, None),
    "the area in windows": (
        lambda n, c, h, w: (h // 8) * (w // 8) > 10**6,
        BOTH,
        {"height": 8007, "width": 8007},
        None,
    ),
    "all pixels of a batch": (lambda n, c, h, w: n * h * w > 10**7, BOTH, {"height": 215, "width": 215}, 215),
    "the rows of a batch": (lambda n, c, h, w: n * h > 10**7, None, {}, 1_250_000),
    "eighths of the samples": (lambda n, c, h, w: n // 8 > 10**6, None, {}, 8_000_007),
}


@pytest.mark.parametrize(("decide", "dynamic", "highest", "samples"), FAR_AND_LARGE.values(), ids=FAR_AND_LARGE)
def test_where_a_decision_lies_too_far_to_compare_the_sizes_before_it_are_limits(decide, dynamic, highest, samples):
    model = Decides(decide).eval()
    quantized = rw.quantize(model, IMAGES, EXACT, dynamic=dynamic)
    (spec,) = quantized.graph.inputs
    assert {size.name: size.sizes.high for size in spec.variable if size.name} == highest
    assert quantized.graph.limits.batches.high == samples
    if highest:
        with raises(rw.ModelError, "'height'", highest["height"]):
            quantized(torch.zeros(1, 3, 1, 1).expand(1, 3, highest["height"] + 1, 12))
    torch.testing.assert_close(quantized(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-3)


def test_a_program_with_a_far_condition_has_limits_too():
    shapes = ({0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},)
    model = Decides(lambda n, c, h, w: h * w > 10**7).eval()
    quantized = rw.quantize(torch.export.export(model, (IMAGES,), dynamic_shapes=shapes), IMAGES, EXACT)
    (spec,) = quantized.graph.inputs
    assert [size.sizes.high for size in spec.variable] == [3162, 3162]
