"""The scale of LSQ's start, against its formula."""

import pytest
import torch

import roundwise as rw
from roundwise.numerics.grid import Codebook, PerChannel, PerTensor
from roundwise.statistics import Nothing


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_scale_is_twice_the_mean_magnitude_over_the_root_of_the_largest_code(bits):
    weight = torch.randn(1, 5, 40, generator=torch.Generator().manual_seed(bits))
    book = Codebook(bits)
    found = rw.ranges.MeanMagnitude().estimate(weight, book, PerChannel(), Nothing(), "layer")
    torch.testing.assert_close(found.scale, 2 * weight.abs().mean(-1, keepdim=True) / book.qmax**0.5)


def test_an_asymmetric_grid_reaches_no_farther_than_the_weights():
    weight = torch.rand(1, 5, 40, generator=torch.Generator().manual_seed(0)) + 1
    found = rw.ranges.MeanMagnitude().estimate(weight, Codebook(8, False), PerTensor(), Nothing(), "layer")
    assert float(found.scale) * 255 == pytest.approx(float(weight.max()), rel=1e-5)
