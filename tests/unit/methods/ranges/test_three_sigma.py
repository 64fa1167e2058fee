"""The scale of LSQ+'s start, against its formula."""

import pytest
import torch
from facts import raises

import roundwise as rw
from roundwise.numerics.grid import Codebook, PerChannel
from roundwise.statistics import Nothing


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_covers_the_mean_and_three_deviations(bits):
    weight = torch.randn(1, 5, 400, generator=torch.Generator().manual_seed(bits)) + 0.3
    found = rw.ranges.ThreeSigma().estimate(weight, Codebook(bits), PerChannel(), Nothing(), "layer")
    mean, std = weight.mean(-1, keepdim=True), weight.std(-1, keepdim=True, unbiased=False)
    wanted = (mean - 3 * std).abs().maximum((mean + 3 * std).abs()) / 2 ** (bits - 1)
    torch.testing.assert_close(found.scale, wanted)


def test_an_outlier_hardly_moves_the_scale():
    weight = torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    before, after = weight, weight.clone()
    after[0, 0, 0] = 50.0
    scales = [
        float(method.estimate(w, Codebook(4), PerChannel(), Nothing(), "layer").scale)
        for method in (rw.ranges.ThreeSigma(), rw.ranges.MinMax())
        for w in (before, after)
    ]
    assert scales[1] < 1.5 * scales[0]
    assert scales[3] > 5 * scales[2]


@pytest.mark.parametrize("deviations", [0.0, -1.0])
def test_deviations_must_be_positive(deviations):
    with raises(rw.RecipeError, "deviations"):
        rw.ranges.ThreeSigma(deviations)
