"""AdaRound: its alternatives and settings; Eq. 22 to 24 have tests in `test_relaxation.py`."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.statistics import Samples
from roundwise.testing import tiny_cases

SOLVER = rw.rounding.AdaRound()

RELAXATIONS = ("rectified-sigmoid", "sigmoid", "sigmoid-temperature")


@given(st.floats(0, 1, width=32))
def test_the_soft_weights_start_as_the_float_weights(fraction):
    value = torch.tensor(fraction)
    assert torch.isclose(SOLVER.up(SOLVER.soften(value)), value, atol=1e-6)


@pytest.mark.parametrize("relaxation", RELAXATIONS)
@given(fraction=st.floats(0, 1, width=32), start=st.floats(0.1, 10))
def test_every_relaxation_starts_at_the_float_weights_or_a_thousandth_of_a_step_away(relaxation, fraction, start):
    solver = rw.rounding.AdaRound(relaxation=relaxation, temperature_start=start)
    soft = solver.soften(torch.tensor(fraction))
    assert soft.isfinite()
    assert abs(float(solver.up(soft, solver.temperature(0))) - fraction) < 1.001e-3


def test_every_relaxation_is_the_function_of_the_paper():
    soft = torch.linspace(-4, 4, 9, dtype=torch.float64)
    plain = 1 / (1 + torch.exp(-soft))
    expected = {
        "rectified-sigmoid": (plain * 1.2 - 0.1).clamp(0, 1),
        "sigmoid": plain,
        "sigmoid-temperature": 1 / (1 + torch.exp(-soft / 0.25)),
    }
    for relaxation, values in expected.items():
        assert torch.allclose(rw.rounding.AdaRound(relaxation=relaxation).up(soft, 0.25), values), relaxation


def test_the_temperature_waits_and_then_falls_by_the_same_factor_every_time():
    solver = rw.rounding.AdaRound(iterations=1000, temperature_start=2.0, temperature_end=0.02)
    assert solver.temperature(0) == solver.temperature(200) == 2.0
    assert math.isclose(solver.temperature(600), 0.2)
    assert math.isclose(solver.temperature(1000), 0.02)
    factors = [solver.temperature(i + 1) / solver.temperature(i) for i in range(200, 1000)]
    assert max(factors) - min(factors) < 1e-12
    assert max(factors) < 1


def test_a_temperature_takes_the_place_of_the_regularizer():
    assert {rw.rounding.AdaRound(relaxation="sigmoid-temperature").beta(i) for i in range(0, 10_000, 500)} == {None}
    few = [
        rw.rounding.AdaRound(iterations=50, relaxation="sigmoid-temperature", regularization=r) for r in (0.0, 100.0)
    ]
    first, second = (learnt(solver) for solver in few)
    assert torch.equal(first, second)


def learnt(solver, case=tiny_cases()[0]):
    with torch.no_grad():
        return solver.learn(case.problem(Samples), torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_nearly_every_variable_is_a_decision_at_the_end(relaxation):
    settings = {"iterations": 1000, "batch_size": 48, "relaxation": relaxation}
    up = torch.cat([learnt(rw.rounding.AdaRound(**settings), case).flatten() for case in tiny_cases()[:3]])
    undecided = ((up > 0.05) & (up < 0.95)).float().mean()
    assert undecided < 0.1, f"{undecided:.0%}"


def test_it_is_the_fall_of_the_temperature_that_makes_decisions():
    settings = {"iterations": 1000, "relaxation": "sigmoid-temperature", "temperature_end": 1.0}
    up = learnt(rw.rounding.AdaRound(**settings))
    assert ((up > 0.05) & (up < 0.95)).float().mean() > 0.25


def two_layers():
    torch.manual_seed(0)
    first, second = nn.Linear(12, 16), nn.Linear(16, 8)
    return nn.Sequential(first, nn.ReLU(), second).eval(), torch.randn(96, 12)


def codes_of(asymmetric, overrides):
    model, samples = two_layers()
    solver = rw.rounding.AdaRound(iterations=300, asymmetric=asymmetric)
    recipe = quantizing(rw.Weights(bits=2), solver, overrides=overrides)
    quantized = rw.quantize(model, samples, recipe)
    return [value for name, value in quantized.state_dict().items() if name.endswith("_codes")]


def test_eq_21_and_eq_25_differ_where_earlier_layers_are_quantized_and_nowhere_else():
    symmetric, asymmetric = (codes_of(choice, {}) for choice in (False, True))
    assert torch.equal(symmetric[0], asymmetric[0])
    assert not torch.equal(symmetric[1], asymmetric[1])
    # In Eq. 21 the second layer does not know whether the first is quantized; in Eq. 25 it does.
    alone = {"0": None}
    (symmetric_alone,), (asymmetric_alone,) = (codes_of(choice, alone) for choice in (False, True))
    assert torch.equal(symmetric_alone, symmetric[1])
    assert torch.equal(asymmetric_alone, symmetric[1])


def test_the_loss_sees_the_outputs_through_the_nonlinearity_unless_told_otherwise():
    # Where the nonlinearity hides the outputs, the regularizer alone decides, and it rounds to nearest.
    problem = dataclasses.replace(
        tiny_cases()[0].problem(Samples), nonlinearity=Nonlinearity(lambda values: 0 * values)
    )
    nearest = problem.grid.quantize(problem.weight)
    codes = {
        aware: rw.rounding.AdaRound(iterations=1500, activation_aware=aware)
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
        {"temperature_start": 0.0001},
        {"temperature_end": 0.0},
        {"relaxation": "hopfield"},
    ],
)
def test_a_setting_out_of_range_is_an_error(settings):
    with pytest.raises(rw.RecipeError, match=next(iter(settings)).split("_")[0]):
        rw.rounding.AdaRound(**settings)
