"""The straight-through estimator against PyTorch's own, and what it does to the loss."""

import dataclasses

import pytest
import torch
from facts import raises

import roundwise as rw
from roundwise.graph.matrix import LinearMap
from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.methods.rounding.straight_through import straight_through
from roundwise.numerics.grid import Codebook, Grid
from roundwise.statistics import Samples
from roundwise.testing import tiny_cases
from roundwise.testing.cases import Case


def solve(problem, **settings):
    with torch.no_grad():
        return rw.rounding.StraightThrough(**settings).solve(problem, torch.Generator().manual_seed(0)).codes


def test_the_estimate_is_the_one_that_pytorch_takes_for_its_own_fake_quantization():
    codebook = Codebook(3, symmetric=False)
    grid = Grid(torch.full((1, 1, 1), 0.25), torch.full((1, 1, 1), 3, dtype=torch.int32), codebook)
    # Inside; beyond both ends; and past the last codes, but still rounded to them.
    weight = torch.tensor([[[-0.3, 0.0, 0.6, 0.9, -2.0, 3.0, 1.1, -0.85]]], requires_grad=True)
    slope = torch.arange(1.0, 9.0).reshape(1, 1, 8)
    theirs = torch.fake_quantize_per_tensor_affine(weight, 0.25, 3, codebook.qmin, codebook.qmax)
    (expected,) = torch.autograd.grad(theirs, weight, slope)
    assert expected.count_nonzero() == 6
    assert torch.equal(straight_through(slope, grid.in_codes(weight.detach()), grid), expected)


def test_one_step_of_a_layer_goes_where_autograd_says():
    # Adam's first step is the learning rate times the sign of the gradient, so the weights that it carries over the
    # border between two codes are those whose gradient points there.
    case = tiny_cases()[0]
    problem = case.problem(Samples)
    grid = problem.grid
    weight = problem.weight.clone().requires_grad_()
    rounded = torch.fake_quantize_per_channel_affine(
        weight[0], grid.scale[0, :, 0], grid.zero_point[0, :, 0], 0, grid.codebook.qmin, grid.codebook.qmax
    )
    inputs, targets = problem.statistics.draw(case.samples, torch.Generator().manual_seed(0))
    loss = (targets - case.layer.apply_matrix(rounded.unsqueeze(0), inputs)).square().sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    expected = grid.clip((grid.in_codes(problem.weight) - 0.4 * gradient.sign()).round())
    codes = solve(problem, iterations=1, batch_size=case.samples, reach=0.2)
    assert not torch.equal(codes, grid.quantize(problem.weight))
    assert torch.equal(codes, expected.int())


@pytest.mark.parametrize("seed", range(3))
def test_it_lowers_the_loss(seed):
    generator = torch.Generator().manual_seed(seed)
    weight, mix = torch.randn(16, 32, generator=generator), torch.randn(32, 32, generator=generator)
    inputs = (torch.randn(256, 32, generator=generator) @ (mix * torch.logspace(0, -1.5, 32)).T).relu()
    layer = LinearMap((16, 32), None, torch.device("cpu"))
    case = Case("mixed", layer, layer.to_matrix(weight), inputs, layer.apply(weight, inputs), Codebook(3))
    problem = case.problem(Samples)
    nearest = case.objective(problem.grid, rw.rounding.Rounding(problem.grid.quantize(problem.weight)))
    assert case.objective(problem.grid, rw.rounding.Rounding(solve(problem, iterations=500))) < nearest


def test_the_learning_rate_falls_to_nothing_and_adds_up_to_the_reach():
    solver = rw.rounding.StraightThrough(iterations=1000, reach=0.7)
    rates = [solver.learning_rate(iteration) for iteration in range(1000)]
    assert rates == sorted(rates, reverse=True)
    assert sum(rates) == pytest.approx(0.7, rel=2e-3)
    assert solver.learning_rate(1000) == 0


def test_a_code_may_go_further_than_the_next():
    # The targets are those of other weights, some of them two steps away.
    case = tiny_cases()[0]
    grid = case.grid()
    in_codes = grid.in_codes(case.weight)
    wanted = grid.quantize(case.weight)
    wanted = torch.where(wanted > 0, wanted - 2, wanted)
    targets = case.layer.apply_matrix(grid.dequantize(wanted), case.inputs)
    codes = solve(dataclasses.replace(case, targets=targets).problem(Samples), iterations=1000, reach=4.0)
    assert ((codes - in_codes).abs() > 1).any()
    assert not rw.rounding.StraightThrough().traits.floor_or_ceil


def test_the_loss_sees_the_outputs_through_the_nonlinearity_unless_told_otherwise():
    # Where the nonlinearity hides the outputs there is nothing to learn, and no weight moves.
    problem = dataclasses.replace(
        tiny_cases()[0].problem(Samples), nonlinearity=Nonlinearity(lambda values: 0 * values)
    )
    nearest = problem.grid.quantize(problem.weight)
    assert torch.equal(solve(problem, iterations=300), nearest)
    assert not torch.equal(solve(problem, iterations=300, activation_aware=False), nearest)


@pytest.mark.parametrize("settings", [{"iterations": 0}, {"batch_size": 0}, {"reach": 0.0}])
def test_a_setting_out_of_range_is_an_error(settings):
    with raises(rw.RecipeError, *(f"{name}={value!r}" for name, value in settings.items())):
        rw.rounding.StraightThrough(**settings)
