"""ACIQ clips where the error is least for its distribution, and the correction that goes with it keeps the spread."""

import math

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.cli.recipes import RecipeOptions, build_recipe
from roundwise.methods.ranges.aciq import gauss_clip, laplace_clip
from roundwise.numerics.grid import Codebook, affine_grid
from roundwise.statistics import Nothing

COUNT = 200_000
GENERATOR = torch.Generator().manual_seed(0)
GAUSS = torch.randn(1, 1, COUNT, generator=GENERATOR)
LAPLACE = torch.distributions.Laplace(0.0, 1.0).icdf(torch.rand(1, 1, COUNT, generator=GENERATOR) * 0.9998 + 0.0001)


def estimate(weight, distribution="auto", bits=4, granularity=rw.PerChannel(), symmetric=False):
    return rw.ranges.ACIQ(distribution).estimate(weight, Codebook(bits, symmetric), granularity, Nothing(), "")


def error(weight, end, bits):
    grid = affine_grid(torch.full((1, 1, 1), -end), torch.full((1, 1, 1), end), Codebook(bits, False))
    return float((grid.fake_quantize(weight) - weight).square().mean())


@pytest.mark.parametrize("bits", [3, 4, 5])
@pytest.mark.parametrize(("weight", "clip"), [(GAUSS, gauss_clip), (LAPLACE, laplace_clip)], ids=["gauss", "laplace"])
def test_no_other_clip_is_much_better_on_weights_of_that_distribution(weight, clip, bits):
    best = min(error(weight, end, bits) for end in torch.arange(1, 10, 0.1).tolist())
    assert error(weight, clip(bits), bits) < 1.1 * best
    other = gauss_clip if clip is laplace_clip else laplace_clip
    assert error(weight, clip(bits), bits) < error(weight, other(bits), bits)


@pytest.mark.parametrize("bits", range(2, 17))
def test_the_clip_is_where_the_expected_error_has_its_minimum(bits):
    def laplace(a):
        return 2 * math.exp(-a) + a * a / (3 * 4**bits)

    def gauss(a):
        density, beyond = math.exp(-a * a / 2) / math.sqrt(2 * math.pi), math.erfc(a / math.sqrt(2)) / 2
        return 2 * ((1 + a * a) * beyond - a * density) + a * a / (3 * 4**bits)

    for expected, clip in ((laplace, laplace_clip(bits)), (gauss, gauss_clip(bits))):
        assert expected(clip) < min(expected(clip * 0.98), expected(clip * 1.02))


def test_the_likelier_distribution_is_chosen_for_each_part_that_shares_a_scale():
    both = torch.cat([GAUSS, LAPLACE], 1)
    auto, gauss, laplace = (estimate(both, distribution).scale for distribution in ("auto", "gauss", "laplace"))
    assert torch.equal(auto[:, 0], gauss[:, 0])
    assert torch.equal(auto[:, 1], laplace[:, 1])
    assert (gauss < laplace).all()


def test_the_interval_is_around_the_mean_and_no_wider_than_the_weights():
    grid = estimate(GAUSS * 0.1 + 3, "gauss", bits=8)
    top = float(grid.dequantize(torch.tensor([[[255]]])))
    assert top == pytest.approx(3 + 0.1 * gauss_clip(8), rel=0.01)
    few = torch.tensor([[[-1.0, 1.0, 0.5]]])
    assert float(estimate(few, "laplace", bits=8, symmetric=True).scale) == pytest.approx(1 / 127)


def test_its_setting_can_be_given_as_text_and_comes_back_from_a_recipe():
    recipe = build_recipe(RecipeOptions(ranges="aciq", settings=["ranges.distribution=laplace"]))
    assert recipe == quantizing(rw.Weights(ranges=rw.ranges.ACIQ("laplace")))
    assert rw.Recipe.from_dict(recipe.as_dict()) == recipe
    with raises(rw.RecipeError, "ACIQ", "distribution='cauchy'", "gauss", "laplace"):
        rw.ranges.ACIQ("cauchy")


@pytest.mark.parametrize("granularity", [rw.PerTensor(), rw.PerChannel(), rw.PerGroup(16)], ids=repr)
def test_the_weights_that_share_a_scale_keep_their_standard_deviation(granularity):
    torch.manual_seed(0)
    model, samples = nn.Linear(64, 8).eval(), torch.randn(32, 64)

    def weights_of(solver):
        recipe = quantizing(rw.Weights(3, granularity, ranges=rw.ranges.ACIQ()), solver)
        with torch.no_grad():
            return (rw.quantize(model, samples, recipe)(torch.eye(64)) - model.bias).T.double()

    def deviations(matrix):
        shape = {rw.PerTensor(): (1, 1), rw.PerChannel(): (8, 1)}.get(granularity, (8, 4))
        return matrix.reshape(*shape, -1).std(-1, correction=0)

    wanted = deviations(model.weight.detach().double())
    torch.testing.assert_close(deviations(weights_of(rw.rounding.NearestMoments())), wanted, rtol=1e-5, atol=0)
    assert not torch.allclose(deviations(weights_of(rw.rounding.Nearest())), wanted, rtol=1e-3)


def test_with_the_correction_of_biases_the_mean_of_weights_is_made_up_for_where_inputs_are_steady():
    torch.manual_seed(0)
    model = nn.Linear(64, 8).eval()
    samples = torch.rand(64, 64) + 1
    weights = rw.Weights(2, ranges=rw.ranges.ACIQ())
    plain = rw.quantize(model, samples, quantizing(weights, rw.rounding.NearestMoments()))
    corrected = rw.quantize(
        model, samples, quantizing(weights, rw.rounding.NearestMoments(), correction=rw.corrections.EmpiricalBias())
    )
    with torch.no_grad():
        assert (model(samples) - corrected(samples)).mean(0).abs().max() < 1e-5
    assert corrected.report.layers[0].error < plain.report.layers[0].error / 4
