"""Checks for every range estimator, on every case. A check takes (estimator, case)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import RangeEstimator
from roundwise.numerics.grid import Grid, PerGroup, PerTensor
from roundwise.statistics import Nothing
from roundwise.testing.cases import Case
from roundwise.testing.requirement import checks_in, require, unchanged


def estimate(estimator: RangeEstimator[Any], case: Case, weight: Tensor | None = None) -> Grid:
    """Estimate a grid as the stream does, for the weights of the case unless others are given."""
    weight = case.weight if weight is None else weight
    with torch.no_grad():
        return estimator.estimate(weight, case.codebook, case.granularity, case.statistic(estimator.needs), case.name)


def check_the_grid_is_what_was_asked_for(estimator: RangeEstimator[Any], case: Case) -> None:
    """The codebook is the given one, and there is one scale for each tensor, row or group, as the granularity says."""
    grid = estimate(estimator, case)
    groups, rows, cols = case.weight.shape
    shape = (groups, rows, 1)
    if isinstance(case.granularity, PerTensor):
        shape = (1, 1, 1)
    elif isinstance(case.granularity, PerGroup):
        shape = (groups, rows, cols // case.granularity.size)
    require(grid.codebook == case.codebook, f"the codebook is {grid.codebook}, not {case.codebook}")
    found = (tuple(grid.scale.shape), tuple(grid.zero_point.shape))
    require(found == (shape, shape), f"scales and zero points are {found[0]} and {found[1]}, not {shape}")


def check_scales_and_zero_points_are_usable(estimator: RangeEstimator[Any], case: Case) -> None:
    """Scales are positive float32, zero points int32 codes, 0 on symmetric grids, and 0.0 is on the grid."""
    grid = estimate(estimator, case)
    require(grid.scale.dtype == torch.float32, f"scales are {grid.scale.dtype}, not float32")
    require(grid.zero_point.dtype == torch.int32, f"zero points are {grid.zero_point.dtype}, not int32")
    usable = grid.scale.isfinite() & (grid.scale > 0)
    require(bool(usable.all()), f"{int((~usable).sum())} scales are not positive finite numbers")
    require(torch.equal(grid.clip(grid.zero_point), grid.zero_point), "a zero point is not in the codebook")
    shifted = case.codebook.symmetric and bool(grid.zero_point.any())
    require(not shifted, "a symmetric grid has a zero point other than 0")
    zeros = torch.zeros_like(case.weight)
    require(torch.equal(grid.fake_quantize(zeros), zeros), "0.0 is not on the grid")


def check_the_grid_is_better_than_no_weights(estimator: RangeEstimator[Any], case: Case) -> None:
    """Nearest rounding on the grid is nearer to the weights than zeros are."""
    rounded = estimate(estimator, case).fake_quantize(case.weight)
    error, energy = float((rounded - case.weight).square().sum()), float(case.weight.square().sum())
    require(error < energy or energy == 0, f"the squared error is {error:g}, that of zeros {energy:g}")


def check_the_same_input_gives_the_same_grid(estimator: RangeEstimator[Any], case: Case) -> None:
    """The grid depends on the arguments alone. They are not changed, and no random numbers are used."""
    with unchanged({"the weights": case.weight}):
        first, second = estimate(estimator, case), estimate(estimator, case)
    require(_equal(first, second), "the same weights gave two grids")


def check_half_precision_weights_do(estimator: RangeEstimator[Any], case: Case) -> None:
    """Weights in float16 or bfloat16 give the same grid as the same numbers in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        half = case.weight.to(dtype)
        same = _equal(estimate(estimator, case, half), estimate(estimator, case, half.float()))
        require(same, f"{dtype} weights gave another grid than the same numbers in float32")


def check_rows_do_not_disturb_each_other(estimator: RangeEstimator[Any], case: Case) -> None:
    """With a scale per row or finer, a row alone has the same grid as beside other rows."""
    if estimator.needs is not Nothing or isinstance(case.granularity, PerTensor):
        return
    whole, alone = estimate(estimator, case), estimate(estimator, case, case.weight[:1, 1:2])
    same = torch.equal(whole.scale[:1, 1:2], alone.scale) and torch.equal(whole.zero_point[:1, 1:2], alone.zero_point)
    require(same, "a row alone has another grid than beside the others")


def check_groups_that_do_not_divide_are_refused(estimator: RangeEstimator[Any], case: Case) -> None:
    """A group size that does not divide the columns is an error that names the layer and the size."""
    size = case.weight.shape[-1] + 1
    try:
        estimator.estimate(case.weight, case.codebook, PerGroup(size), case.statistic(estimator.needs), "features.0")
    except RecipeError as error:
        require(
            "features.0" in str(error) and str(size) in str(error),
            f"the error does not name the layer and the size: {error}",
        )
    else:
        require(False, f"groups of {size} were accepted for {size - 1} columns")


RANGE_CHECKS: tuple[Callable[[RangeEstimator[Any], Case], None], ...] = checks_in(globals())


def _equal(first: Grid, second: Grid) -> bool:
    return torch.equal(first.scale, second.scale) and torch.equal(first.zero_point, second.zero_point)
