"""Scales that follow the outputs: the least error that nearest codes can have, and never a larger one."""

import dataclasses

import pytest
import torch
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.statistics import Gram, Nothing
from roundwise.testing import tiny_cases


@pytest.mark.parametrize("case", tiny_cases(), ids=str)
def test_no_other_scale_reproduces_outputs_better_with_these_codes(case):
    problem, generator = case.problem(Gram), torch.Generator()
    rounding = rw.rounding.NearestScaled().solve(problem, generator)
    nearest = rw.rounding.Nearest().solve(case.problem(Nothing), generator)
    assert torch.equal(rounding.codes, nearest.codes)
    error = case.objective(rounding.grid, rounding, nonlinearity=False)
    if isinstance(case.granularity, rw.PerGroup):
        assert torch.equal(rounding.grid.scale, problem.grid.scale)
        assert "groups" in rounding.note
        return
    assert error < case.objective(problem.grid, nearest, nonlinearity=False)
    for factor in (0.99, 1.01):
        other = dataclasses.replace(rounding.grid, scale=rounding.grid.scale * factor)
        assert error < case.objective(other, dataclasses.replace(rounding, grid=other), nonlinearity=False)


def test_omse_with_opt_is_no_worse_than_without_and_both_better_than_min_max():
    torch.manual_seed(0)
    model, samples = nn.Linear(24, 8).eval(), torch.randn(256, 24).cumsum(1)

    def error(ranges, rounding):
        return rw.quantize(model, samples, quantizing(rw.Weights(3, ranges=ranges), rounding)).report.layers[0].error

    min_max, omse = (
        error(rw.ranges.MinMax(), rw.rounding.Nearest()),
        error(rw.ranges.WeightMSE(), rw.rounding.Nearest()),
    )
    assert error(rw.ranges.WeightMSE(), rw.rounding.NearestScaled()) < omse < min_max
