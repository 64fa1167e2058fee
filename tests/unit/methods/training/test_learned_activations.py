"""Learned activations: the four configurations of LSQ+, their gradients, and offsets that stay real numbers."""

import pytest
import torch
from facts import raises
from torch import nn

import roundwise as rw
from roundwise.artifacts.emit import emit
from roundwise.methods.training import LSQ, LSQPlus
from roundwise.numerics.grid import Codebook
from roundwise.numerics.quantizer import Quantizer

CPU = torch.device("cpu")
VALUES = torch.tensor([-3.0, -0.26, 0.04, 0.7, 9.0])
REAL = LSQPlus(offset="real")
METHODS = (LSQ(), LSQPlus(), LSQPlus(signed=True), REAL, LSQPlus(signed=True, offset="real"))


def learned(method, scale=0.25, zero_point=2, symmetric=False):
    book = Codebook(3, symmetric)
    return method.activation(Quantizer(scale, 0 if symmetric else zero_point, book), CPU)


@pytest.mark.parametrize(
    "method", [LSQ(), LSQPlus(), LSQPlus(signed=True), REAL, LSQPlus(True, True, "real")], ids=repr
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_starts_as_the_quantizer_and_gives_it_back(method, symmetric):
    module = learned(method, symmetric=symmetric)
    quantizer = Quantizer(0.25, 0 if symmetric else 2, Codebook(3, symmetric))
    torch.testing.assert_close(module(VALUES), quantizer.fake_quantize(VALUES))
    assert module.quantizer == quantizer
    assert module.shift == 0


@pytest.mark.parametrize(("signed", "ends"), [(False, (0, 7)), (True, (-4, 3))])
@pytest.mark.parametrize("offset", ["integer", "real"])
def test_beyond_its_ends_the_gradient_of_the_scale_is_the_code_and_that_of_the_offset_is_1(signed, ends, offset):
    module = learned(LSQPlus(scales_gradients=False, signed=signed, offset=offset))
    for value, code in zip((-3.0, 9.0), ends, strict=True):
        module.zero_grad()
        module(torch.tensor([value])).sum().backward()
        torch.testing.assert_close(module.scale.grad, torch.tensor(float(code)))
        torch.testing.assert_close(module.offset.grad, torch.tensor(1.0))


@pytest.mark.parametrize(("signed", "largest"), [(False, 7), (True, 3)])
def test_gradients_are_divided_by_the_root_of_values_per_sample_times_the_largest_code(signed, largest):
    gradients = []
    for scaled in (True, False):
        module = learned(LSQPlus(scales_gradients=scaled, signed=signed))
        module(VALUES.repeat(6, 2)).sum().backward()  # 10 values in each of 6 samples
        gradients.append(module.scale.grad)
    torch.testing.assert_close(gradients[0] * (10 * largest) ** 0.5, gradients[1])


def test_a_real_offset_is_not_rounded_and_an_integer_one_is():
    for method, on_grid in ((REAL, False), (LSQPlus(), True)):
        module = learned(method)
        with torch.no_grad():
            module.offset.copy_(torch.tensor(-0.41))
        lowest = float(module(torch.tensor([-5.0])).detach())
        assert (abs(lowest + 0.41) < 1e-6) != on_grid
        assert (abs(lowest / 0.25 - round(lowest / 0.25)) < 1e-6) == on_grid


def test_a_real_offset_is_its_integer_quantizer_and_a_shift():
    module = learned(REAL)
    values = torch.linspace(-2, 2, 101)
    for offset in (-0.41, -1.9, 0.3):
        with torch.no_grad():
            module.offset.copy_(torch.tensor(offset))
        shifted = module.quantizer.fake_quantize(values - module.shift) + module.shift
        torch.testing.assert_close(module(values), shifted)


@pytest.mark.parametrize("signed", [False, True])
def test_after_ranges_from_zero_negative_values_are_lost_in_unsigned_codes_alone(signed):
    images = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ranges = rw.activations.ActivationMSE(keeps_negatives=False)
    settings = rw.Activations(bits=4, symmetric=signed, ranges=ranges)
    stage = rw.Quantize(rw.Weights(bits=4), rw.rounding.Nearest(), activations=settings)
    (image,) = rw.quantize(nn.Conv2d(3, 2, 1).eval(), images, stage).report.activations
    assert image.zero_point == 0
    assert image.low < 0 < image.scale


class Silu(nn.Module):
    """After SiLU: a convolution with a border of zeros, one without, and a linear layer behind a pool."""

    def __init__(self):
        super().__init__()
        self.stem, self.padded = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.valid, self.bn, self.fc = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        y = nn.functional.silu(self.padded(nn.functional.silu(self.stem(x))))
        return self.fc(nn.functional.silu(self.bn(self.valid(y))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained():
    """A module with real offsets that are off the grid."""
    torch.manual_seed(0)
    images = torch.randn(16, 3, 9, 9)
    stage = rw.Quantize(rw.Weights(bits=4), rw.rounding.Nearest(), activations=rw.Activations(bits=3))
    module = rw.trainable(Silu().eval(), images, (stage, rw.Finetune(quantization=REAL)))
    with torch.no_grad():
        for quantizer in module.quantizers:
            if getattr(quantizer, "offset", None) is not None:
                quantizer.offset += 0.3 * quantizer.scale
    return module.eval(), images


def test_what_leaves_training_computes_what_was_trained_also_at_padded_borders(trained, tmp_path):
    module, images = trained
    network = module.to_network()
    with torch.no_grad():
        wanted = module(images)
        found = emit(network.graph, list(network.weights), network.quantizers).module()(images)
    torch.testing.assert_close(found, wanted)
    model = module.finish()
    model.save(tmp_path / "net.rw")
    with torch.no_grad():
        torch.testing.assert_close(rw.load(tmp_path / "net.rw")(images), wanted)


def test_a_bias_takes_the_offset_up_where_it_can_and_the_report_names_where_it_cannot(trained):
    module, _ = trained
    report = module.finish().report
    notes = " ".join(report.notes)
    adds = [node for node in module.to_network().graph.operations.nodes if node.target is torch.ops.aten.add.Tensor]
    assert len(adds) == 2  # before the padded convolution, and before the pool
    assert "silu" in notes
    assert "conv2d_1" in notes
    assert "conv2d_2" not in notes


@pytest.mark.parametrize("settings", [{"offset": "whole"}, {"signed": 1}, {"scales_gradients": "no"}])
def test_settings_of_the_wrong_kind_are_refused(settings):
    with raises(rw.RecipeError, *settings):
        LSQPlus(**settings)
