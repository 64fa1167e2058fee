"""The relaxation: Eq. 22 to 24, their annealing, and the descent on second moments."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_layers import wide

import roundwise as rw
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search import relaxation
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.descent import Descent
from roundwise.numerics.search.relaxation import (
    BetaAnnealing,
    RectifiedSigmoid,
    Relaxation,
    regularizer,
    regularizer_slope,
)


@given(fraction=st.floats(0, 1, width=32), zeta=st.floats(1.01, 2), gamma=st.floats(-1, -0.01))
def test_the_inverse_of_the_rectified_sigmoid_gives_the_fraction_back(fraction, zeta, gamma):
    h, value = RectifiedSigmoid(zeta, gamma), torch.tensor(fraction)
    assert torch.isclose(h(h.inverse(value)), value, atol=1e-5)


def test_the_rectified_sigmoid_reaches_both_ends_exactly_where_the_sigmoid_is_at_its_ends():
    h = RectifiedSigmoid()
    assert h(torch.tensor([-10.0, 0.0, 10.0])).tolist() == [0.0, 0.5, 1.0]
    for end, value in zip(h.ends, (0.0, 1.0), strict=True):
        soft = torch.tensor(end, dtype=torch.float64).logit()
        assert abs(float(h(soft)) - value) < 1e-12
        assert 0 < float(h(soft + 0.01 - 0.02 * value)) < 1


def test_beta_waits_and_then_falls_along_a_cosine():
    annealing = BetaAnnealing()
    assert annealing.at(199, 1000) is None
    assert annealing.at(200, 1000) == 20.0
    assert math.isclose(annealing.at(600, 1000), 11.0)
    assert 2.0 < annealing.at(999, 1000) < 2.001
    betas = [annealing.at(i, 1000) for i in range(200, 1000)]
    assert betas == sorted(betas, reverse=True)


@given(st.floats(0.01, 0.99), st.floats(2, 20))
def test_the_written_out_derivative_of_the_regularizer_is_the_one_autograd_finds(up, beta):
    value = torch.tensor(up, dtype=torch.float64, requires_grad=True)
    regularizer(value, beta).backward()
    assert torch.isclose(regularizer_slope(value.detach(), beta), value.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("regularization", [0.0, 0.5])
def test_a_step_of_the_relaxation_goes_down_the_gradient_of_eq_25(regularization, monkeypatch):
    """Late in the annealing, where the regularizer counts; the gradient is caught on its way to Adam."""
    seen = []

    def catch(variables, gradients, *rest, **named):
        seen.append((variables[0], gradients[0]))

    monkeypatch.setattr(relaxation, "adam", catch)
    quadratic = wide(cols=5)
    grid = rw.Grid.symmetric(torch.full((1, 1, 1), 0.7), bits=8)
    Relaxation(iterations=4, regularization=regularization).search(quadratic, grid, quadratic.weight)
    h, beta = RectifiedSigmoid(), BetaAnnealing().at(3, 4)
    soft = seen[-1][0].clone().requires_grad_()
    with torch.enable_grad():
        matrix = (grid.in_codes(quadratic.weight).floor() + h(soft)) * 0.7
        unit = (0.49 * quadratic.hessian.diagonal(dim1=1, dim2=2)).mean()
        loss = quadratic.loss(matrix).sum() / unit + regularization * regularizer(h(soft), beta).sum()
        (gradient,) = torch.autograd.grad(loss, soft)
    torch.testing.assert_close(seen[-1][1], gradient, rtol=1e-3, atol=1e-4)


def test_the_relaxation_beats_coordinate_descent_alone():
    gains = []
    for seed in range(4):
        quadratic = wide(seed=seed)
        grid = rw.Grid.symmetric(quadratic.weight.abs().amax(-1, keepdim=True) / 3, bits=3)
        choices = Choices.floor_or_ceil(grid, quadratic.weight)
        relaxed = Relaxation(500).search(quadratic, grid, quadratic.weight).codes
        starts = relaxed, grid.quantize(quadratic.weight)
        ends = [Descent().search(quadratic, grid, codes, choices) for codes in starts]
        losses = [quadratic.loss(grid.dequantize(codes)).sum().item() for codes in ends]
        gains.append(losses[0] / losses[1])
    assert sum(gains) / len(gains) < 0.97


def test_the_same_regularization_serves_layers_of_any_size():
    """Weights a thousand times smaller, inputs a thousand times larger: the same decisions."""
    quadratic = wide()
    grid = rw.Grid.symmetric(torch.full((1, 1, 1), 0.7), bits=3)
    codes = Relaxation(500).search(quadratic, grid, quadratic.weight).codes
    scaled = Quadratic(quadratic.weight / 1024, quadratic.hessian * 1024.0**2, quadratic.inherited, quadratic.constant)
    small = rw.Grid.symmetric(grid.scale / 1024, bits=3)
    assert torch.equal(Relaxation(500).search(scaled, small, scaled.weight).codes, codes)


def test_it_stops_when_every_variable_is_decided(monkeypatch):
    steps = []
    real = relaxation.adam
    monkeypatch.setattr(relaxation, "adam", lambda *given, **named: steps.append(real(*given, **named)))
    quadratic = wide()
    grid = rw.Grid.symmetric(torch.full((1, 1, 1), 0.7), bits=3)
    Relaxation(5000, regularization=100.0).search(quadratic, grid, quadratic.weight)
    assert 1000 <= len(steps) < 5000  # the first fifth has no regularizer


def test_without_steps_the_codes_are_those_nearest_to_the_centre():
    quadratic = wide()
    grid = rw.Grid.symmetric(torch.full((1, 1, 1), 0.7), bits=8)
    relaxed = Relaxation(0).search(quadratic, grid, quadratic.weight)
    assert torch.equal(relaxed.codes, grid.quantize(quadratic.weight))
    assert relaxed.bias is None
