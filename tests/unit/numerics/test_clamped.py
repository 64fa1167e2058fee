"""The loss behind a clamp: its gradient on minibatches, and the quadratic that majorises it."""

import math

import pytest
import torch
from small_layers import linear_case, whole_problem

from roundwise.numerics.clamped import ClampedLoss, majorising_change
from roundwise.numerics.quadratic import Quadratic
from roundwise.testing import cases


@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 2.0)], ids=str)
def test_targets_for_a_clamp_are_the_ones_that_majorise_the_loss_behind_it(limits):
    low, high = limits
    y, z = torch.meshgrid(*[torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 7.0])] * 2, indexing="ij")
    wanted = torch.where(y <= low, z.clamp(max=low), torch.where(y >= high, z.clamp(min=high), y))
    change = majorising_change(y, z, limits)
    assert torch.equal(change, wanted - y)
    target = y + change
    bound, loss = (target - z).square(), (y.clamp(low, high) - z.clamp(low, high)).square()
    assert (bound >= loss).all()
    inside, same_limit = (low <= z) & (z <= high), ((y <= low) & (z <= low)) | ((y >= high) & (z >= high))
    assert torch.equal(bound == loss, inside | same_limit)


@pytest.mark.parametrize("free_bias", [False, True])
@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)], ids=["ReLU", "ReLU6", "hardtanh"])
@pytest.mark.parametrize("grouped", [False, True])
def test_half_the_gradient_is_that_of_the_loss_behind_the_clamp_with_its_pull_to_the_weights(
    limits, free_bias, grouped
):
    grouped_case = next(case for case in cases() if case.layer.groups > 1 and not case.layer.transposed)
    case = grouped_case if grouped else linear_case(mean=0.5)
    gram, bias = whole_problem(case).statistics, case.layer.bias_rows
    plain = Quadratic.of(gram.fit, case.weight, bias, free_bias=free_bias)
    strength = torch.full((len(case.weight),), 0.3)
    clamped = ClampedLoss(plain, strength, bias, limits, gram.minibatches(10**6))
    (pairs,) = gram.positions("fit")
    matrix, level = case.grid().fake_quantize(case.weight).requires_grad_(), clamped.first_level()
    with torch.enable_grad():
        own = clamped.bias_at(level, matrix)  # the level stays, so a free bias moves with the weights
        outputs = pairs.columns @ matrix.mT + own.unsqueeze(1)
        error = (outputs.clamp(*limits) - pairs.targets.clamp(*limits)).square().mean(1).sum()
        pulled = error + 0.3 * (matrix - case.weight).square().sum()
        (gradient,) = torch.autograd.grad(pulled, matrix)
    half, _ = clamped.half_gradient(matrix.detach(), level)
    torch.testing.assert_close(2 * half, gradient, rtol=1e-4, atol=1e-4)


def test_a_free_bias_moves_to_where_the_loss_behind_the_clamp_is_least():
    case = linear_case(mean=0.5)
    gram, bias = whole_problem(case).statistics, torch.zeros(1, 5)
    plain = Quadratic.of(gram.fit, case.weight, bias, free_bias=True)
    clamped = ClampedLoss(plain, torch.zeros(1), bias, (0.0, math.inf), gram.minibatches(10**6))
    (pairs,) = gram.positions("fit")
    matrix, level = case.grid().fake_quantize(case.weight), clamped.first_level()
    for _ in range(200):
        _, level = clamped.half_gradient(matrix, level)

    def loss(shift):
        outputs = pairs.columns @ matrix.mT + (clamped.bias_at(level, matrix) + shift).unsqueeze(1)
        return (outputs.relu() - pairs.targets.relu()).square().mean(1)

    for shift in (-0.1, -0.01, 0.01, 0.1):
        assert (loss(shift) > loss(0.0)).all()


def test_a_bias_that_is_not_free_stays():
    case = linear_case(mean=0.5)
    gram, bias = whole_problem(case).statistics, torch.full((1, 5), 0.25)
    plain = Quadratic.of(gram.fit, case.weight, bias, free_bias=False)
    clamped = ClampedLoss(plain, torch.zeros(1), bias, (0.0, math.inf), gram.minibatches(64))
    _, level = clamped.half_gradient(case.weight, clamped.first_level())
    assert torch.equal(clamped.bias_at(level, case.weight), bias)
