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
    "every fourth number of samples": (lambda n, c, h, w: n % 4 == 0, None, ("x.shape[0]", 4)),
    "all but every third number of samples": (lambda n, c, h, w: n % 3, None, ("x.shape[0]", 3)),
    "odd heights": (lambda n, c, h, w: h % 2, BOTH, ("x.shape[2]", 3)),
    "square images": (lambda n, c, h, w: h == w, BOTH, ("x.shape[2]", "x.shape[3]", 8)),
    "as many samples as columns": (lambda n, c, h, w: n == w, BOTH, ("x.shape[0]", "x.shape[3]", 12)),
    "an area that 96 divides": (lambda n, c, h, w: h * w % 96 == 0, BOTH, ("x.shape[2]", "x.shape[3]")),
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


def test_a_program_that_holds_for_every_other_number_of_samples_is_refused():
    model = Decides(lambda n, c, h, w: n % 4 == 0).eval()
    program = torch.export.export(model, (IMAGES[:23],), dynamic_shapes=({0: Dim.DYNAMIC},))
    with raises(rw.CaptureError, "x.size()[0] % 4 != 0", 4):
        rw.quantize(program, IMAGES[:23], EXACT)
