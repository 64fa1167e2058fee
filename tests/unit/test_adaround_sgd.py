"""The pieces of AdaRound, each against its equation."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import roundwise as rw
from roundwise.graph.activation import Activation
from roundwise.rounding.adaround_sgd import regularizer_slope
from roundwise.statistics import Samples
from roundwise.testing import tiny_cases

SOLVER = rw.AdaRoundSGD()


@given(st.floats(0, 1, width=32))
def test_the_soft_weights_start_as_the_float_weights(fraction):
    value = torch.tensor(fraction)
    assert torch.isclose(SOLVER.rectified_sigmoid(SOLVER.inverse_rectified_sigmoid(value)), value, atol=1e-6)


def test_the_rectified_sigmoid_reaches_both_ends_exactly():
    ends = SOLVER.rectified_sigmoid(torch.tensor([-10.0, 0.0, 10.0]))
    assert ends.tolist() == [0.0, 0.5, 1.0]


def test_beta_waits_and_then_falls_along_a_cosine():
    solver = rw.AdaRoundSGD(iterations=1000)
    assert solver.beta(199) is None
    assert solver.beta(200) == 20.0
    assert math.isclose(solver.beta(600), 11.0)
    assert 2.0 < solver.beta(999) < 2.001
    betas = [solver.beta(i) for i in range(200, 1000)]
    assert betas == sorted(betas, reverse=True)


@given(st.floats(0.01, 0.99), st.floats(2, 20))
def test_the_written_out_derivative_of_the_regularizer_is_the_one_autograd_finds(up, beta):
    value = torch.tensor(up, dtype=torch.float64, requires_grad=True)
    (1 - (2 * value - 1).abs().pow(beta)).backward()
    assert torch.isclose(regularizer_slope(value.detach(), beta), value.grad, rtol=1e-6, atol=1e-9)


def test_the_loss_sees_the_outputs_through_the_activation_function_unless_told_otherwise():
    # Where the activation function hides the outputs, the regularizer alone decides, and it rounds to nearest.
    problem = dataclasses.replace(tiny_cases()[0].problem(Samples), activation=Activation(lambda values: 0 * values))
    nearest = problem.grid.quantize(problem.weight)
    codes = {
        aware: rw.AdaRoundSGD(iterations=1500, activation_aware=aware)
        .solve(problem, torch.Generator().manual_seed(0))
        .codes
        for aware in (True, False)
    }
    assert torch.equal(codes[True], nearest)
    assert not torch.equal(codes[False], nearest)


@pytest.mark.parametrize(
    "settings",
    [
        {"iterations": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"regularization": -1.0},
        {"beta_start": 1.0},
        {"warm_up": 1.0},
        {"zeta": 1.0},
        {"gamma": 0.0},
    ],
)
def test_a_setting_out_of_range_is_an_error(settings):
    with pytest.raises(rw.RecipeError, match=next(iter(settings)).split("_")[0]):
        rw.AdaRoundSGD(**settings)
