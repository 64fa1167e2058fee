"""The grid and its ranges, on random weights."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import roundwise as rw
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.numerics.grid import BITS, Codebook, Grid
from roundwise.statistics import Nothing


def weights(seed, tails=False):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(2, 3, 8, generator=generator)
    return matrix**3 if tails else matrix


codebooks = st.builds(Codebook, st.sampled_from(BITS), st.booleans())
seeds = st.integers(0, 10_000)
granularities = st.sampled_from([rw.PerTensor(), rw.PerChannel(), rw.PerGroup(4)])


def estimate(estimator, matrix, codebook, granularity):
    return estimator.estimate(matrix, codebook, granularity, Nothing(), "layer")


def squared_error(grid, matrix):
    return float((grid.fake_quantize(matrix) - matrix).double().square().sum())


@given(seeds, codebooks, granularities)
@settings(max_examples=60, deadline=None)
def test_min_max_loses_at_most_half_a_step_anywhere(seed, codebook, granularity):
    matrix = weights(seed)
    grid = estimate(rw.ranges.MinMax(), matrix, codebook, granularity)
    step = grid.scales(8).expand(matrix.shape)
    # An integer zero point shifts an asymmetric grid by up to half a step against the weights' ends.
    reach = 0.5 if codebook.symmetric else 1.0
    assert ((grid.fake_quantize(matrix) - matrix).abs() <= (reach + 1e-3) * step + 1e-6).all()


@given(seeds, codebooks, granularities)
@settings(max_examples=60, deadline=None)
def test_codes_stay_within_the_codebook_and_round_trip(seed, codebook, granularity):
    matrix = weights(seed, tails=True)
    grid = estimate(rw.ranges.MinMax(), matrix, codebook, granularity)
    codes = grid.quantize(5 * matrix)
    assert codebook.qmin <= int(codes.min())
    assert int(codes.max()) <= codebook.qmax
    assert torch.equal(grid.quantize(grid.dequantize(codes)), codes)


@given(seeds, codebooks, granularities)
@settings(max_examples=60, deadline=None)
def test_zero_is_exactly_on_the_grid(seed, codebook, granularity):
    grid = estimate(rw.ranges.MinMax(), weights(seed).abs() + 0.1, codebook, granularity)
    assert not grid.fake_quantize(torch.zeros(2, 3, 8)).any()


@given(seeds, codebooks, granularities)
@example(2195, Codebook(16), rw.PerTensor())  # where products rounded to float32 decide
@settings(max_examples=40, deadline=None)
def test_the_best_squared_error_is_no_worse_than_that_of_min_max(seed, codebook, granularity):
    matrix = weights(seed, tails=True)
    best, simple = (estimate(kind(), matrix, codebook, granularity) for kind in (rw.ranges.WeightMSE, rw.ranges.MinMax))
    assert squared_error(best, matrix) <= squared_error(simple, matrix) * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_what_a_dense_search_finds(bits, seed):
    matrix = weights(seed, tails=True)
    grid = estimate(rw.ranges.WeightMSE(), matrix, Codebook(bits), rw.PerTensor())
    top = float(matrix.abs().max()) / (2 ** (bits - 1) - 1)
    scales = (top * torch.arange(200, 4400, dtype=torch.float64) / 4000).float().reshape(-1, 1, 1)
    values = matrix.reshape(1, 1, -1).expand(len(scales), 1, -1)  # each as a group of its own, with a scale of its own
    rounded = Grid.symmetric(scales, bits).fake_quantize(values)
    dense = float((rounded - values).double().square().sum((1, 2)).min())
    assert squared_error(grid, matrix) <= 1.02 * dense


@pytest.mark.parametrize("estimator", [kind for kind in RANGE_ESTIMATORS.values() if kind.needs is Nothing])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e20])
@pytest.mark.parametrize("symmetric", [True, False])
def test_extreme_magnitudes_give_a_finite_grid(estimator, scale, symmetric):
    matrix = weights(0) * scale
    grid = estimate(estimator(), matrix, Codebook(4, symmetric), rw.PerChannel())
    assert torch.isfinite(grid.scale).all()
    assert (grid.scale > 0).all()
    assert torch.isfinite(grid.fake_quantize(matrix)).all()


def test_ties_go_to_the_even_code():
    grid = Grid.symmetric(torch.ones(1, 1, 1), 4)
    assert grid.quantize(torch.tensor([[[0.5, 1.5, 2.5, -0.5]]])).tolist() == [[[0, 2, 2, 0]]]
