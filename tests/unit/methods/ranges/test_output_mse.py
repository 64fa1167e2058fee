"""Output MSE ranges: they do to the layer's output what their name says."""

import math

import pytest
import torch
from facts import raises

import roundwise as rw
from roundwise.statistics import Gram
from roundwise.testing import cases


def output_error(case, grid):
    """E ‖(W − W̄) x̂‖² on the samples that ranges are chosen by."""
    fit = case.statistic(Gram).fit
    difference = case.weight - grid.fake_quantize(case.weight)
    return float(((difference @ (fit.second / fit.count)) * difference).sum())


def estimate(estimator, case, weight=None):
    weight = case.weight if weight is None else weight
    return estimator.estimate(weight, case.codebook, case.granularity, case.statistic(estimator.needs), case.name)


@pytest.mark.slow
def test_nearest_rounding_harms_outputs_less_than_on_grids_that_look_at_weights_alone():
    logs = []
    for case in cases():
        errors = [
            output_error(case, estimate(kind, case))
            for kind in (rw.ranges.OutputMSE(), rw.ranges.WeightMSE(), rw.ranges.MinMax())
        ]
        if min(errors) > 0:
            if not isinstance(case.granularity, rw.PerGroup):  # there each block is chosen with the others in float
                assert errors[0] <= errors[2] * (1 + 1e-4), case  # min-max is among its candidates
            logs.append(math.log(errors[0] / errors[1]))
    assert sum(logs) / len(logs) < -0.05


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_extreme_weights_have_a_finite_grid(scale):
    case = cases()[0]
    grid = estimate(rw.ranges.OutputMSE(), case, case.weight * scale)
    assert torch.isfinite(grid.scale).all()
    assert (grid.scale > 0).all()


def test_no_candidates_are_refused():
    with raises(rw.RecipeError, "OutputMSE", "candidates=0"):
        rw.ranges.OutputMSE(candidates=0)
