"""The quadratic objective: what it is, its closed forms, and its shrinkage."""

import dataclasses
import math

import pytest
import torch
from small_layers import errors, linear_case, moments, scale_of, some_matrix, whole_problem

from roundwise.numerics.grid import PerGroup, PerTensor
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.descent import Descent
from roundwise.statistics import Gram
from roundwise.testing import cases, tiny_cases

CASES = pytest.mark.parametrize("case", cases(), ids=str)
SOME = pytest.mark.parametrize("case", tiny_cases(), ids=str)


@CASES
def test_the_quadratic_is_the_mean_squared_error_of_the_outputs(case):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=False)
    matrix = some_matrix(case)
    torch.testing.assert_close(
        quadratic.loss(matrix).double(), errors(case, matrix), rtol=1e-3, atol=1e-5 * scale_of(case)
    )


@CASES
def test_with_a_free_bias_it_is_the_error_at_the_best_bias(case):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=True)
    matrix = some_matrix(case)
    shift = quadratic.shift(matrix).double()
    at_best = errors(case, matrix, shift)
    torch.testing.assert_close(quadratic.loss(matrix).double(), at_best, rtol=1e-3, atol=1e-5 * scale_of(case))
    step = 0.01 * math.sqrt(scale_of(case)) + 1e-12
    for other in (shift + step, shift - step):
        assert (errors(case, matrix, other) >= at_best).all()


@CASES
@pytest.mark.parametrize("free_bias", [False, True])
def test_the_pull_is_minus_half_the_gradient_at_the_weights(case, free_bias):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=free_bias)
    weight = case.weight.clone().requires_grad_()
    quadratic.loss(weight).sum().backward()
    torch.testing.assert_close(weight.grad, -2 * quadratic.inherited)


@SOME
def test_the_real_valued_minimum_is_below_everything_else(case):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=True)
    least = quadratic.loss(quadratic.minimum(1e-6))
    for seed in range(5):
        assert (quadratic.loss(some_matrix(case, seed)) >= least).all()
    assert (quadratic.loss(case.weight) >= least * (1 - 1e-3)).all()


@SOME
def test_the_best_scale_is_better_than_others(case):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=False)
    grid = case.grid()
    codes = grid.quantize(case.weight)
    fitted = quadratic.best_scale(grid, codes)
    if isinstance(case.granularity, PerGroup):
        assert fitted is grid
        return
    sums = (0, 1) if isinstance(case.granularity, PerTensor) else ()

    def loss(factor):
        rows = quadratic.loss(dataclasses.replace(fitted, scale=fitted.scale * factor).dequantize(codes))
        return rows.sum(sums) if sums else rows

    assert (
        loss(1.0) <= quadratic.loss(grid.dequantize(codes)).sum(sums) * (1 + 1e-5) if sums else loss(1.0) >= 0
    ).all()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (loss(factor) >= loss(1.0) * (1 - 1e-5)).all()


def test_more_samples_are_shrunk_less():
    strengths = []
    for samples in (16, 256, 4096):
        case = linear_case(samples=samples)
        moments = case.statistic(Gram, [samples]).fit
        quadratic = Quadratic.of(moments, torch.randn(1, 5, 12), case.layer.bias_rows, free_bias=True)
        strengths.append(quadratic.shrinkage_strength(1.0).item())
    assert strengths[0] > 3 * strengths[1] > 9 * strengths[2] > 0


def test_with_the_shrinkage_of_a_single_sample_no_code_leaves_nearest_rounding():
    case = linear_case(samples=1)
    problem = whole_problem(case)
    quadratic = Quadratic.of(problem.statistics.fit, case.weight, problem.bias, free_bias=True)
    quadratic = quadratic.shrunk(quadratic.shrinkage_strength(1.0))
    grid = problem.grid
    codes = Descent().search(quadratic, grid, grid.quantize(case.weight), Choices.all(grid, case.weight))
    assert torch.equal(codes, grid.quantize(case.weight))
