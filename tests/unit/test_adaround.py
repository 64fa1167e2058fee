"""AdaRound in Gram space: its parts, its settings, and how near the optimum it comes."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import roundwise as rw
from roundwise.errors import RecipeError
from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.methods.reconstruction import Freedom
from roundwise.methods.reconstruction import solve as solve_gram
from roundwise.methods.rounding import gram_adaround as adaround
from roundwise.numerics.grid import Codebook, PerTensor
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices, descend
from roundwise.statistics import Gram, Nothing, Samples
from roundwise.testing import best_rounding, cases, tiny_cases

PAPER = rw.rounding.GramAdaRound(any_code=False, free_bias=False, fit_scale=False)
LINEAR = cases()[0]


def solve(solver, problem, seed=0):
    with torch.no_grad():
        return solver.solve(problem, torch.Generator().manual_seed(seed))


def quadratic_of(case):
    moments = case.statistic(Gram).fit
    return Quadratic.of(moments, case.weight, case.layer.bias.reshape(case.weight.shape[:2]), free_bias=False)


def wide(rows=6, cols=60, seed=0):
    """A problem with correlated inputs, too wide to be exhausted."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(1, 300, cols, generator=generator) + 2 * torch.randn(1, 300, 1, generator=generator)
    weight = torch.randn(1, rows, cols, generator=generator)
    return Quadratic(weight, root.mT @ root / 300, torch.zeros(1, rows, cols), torch.zeros(1, rows))


def test_with_few_columns_the_roundings_are_the_best_there_are():
    for case in tiny_cases():
        quadratic, grid = quadratic_of(case), case.grid()
        codes = adaround.exhaust(quadratic, grid, case.weight)
        fit = torch.arange(case.samples) % 8 != 7
        seen = dataclasses.replace(case, inputs=case.inputs[fit], targets=case.targets[fit], nonlinearity=None)
        _, optimum = best_rounding(seen, grid)
        assert math.isclose(quadratic.loss(grid.dequantize(codes)).sum().item(), optimum, rel_tol=1e-3, abs_tol=1e-6)


def test_held_to_the_papers_choices_it_comes_within_a_few_percent_of_the_optimum():
    excess = []
    for case in tiny_cases():
        problem = case.problem(Gram)
        _, optimum = best_rounding(case, problem.grid)
        excess.append(case.objective(problem.grid, solve(PAPER, problem)) / optimum - 1)
    assert min(excess) >= -1e-4
    assert sum(excess) / len(excess) < 0.1  # an eighth of the samples is held out, and it never sees them


@pytest.mark.slow
def test_it_does_as_well_as_minibatches_do():
    ratios = []
    for case in tiny_cases():
        ours = case.objective(case.grid(), solve(PAPER, case.problem(Gram)))
        theirs = case.objective(case.grid(), solve(rw.rounding.AdaRound(iterations=1500), case.problem(Samples)))
        ratios.append(math.log(ours / theirs))
    assert math.exp(sum(ratios) / len(ratios)) < 1.05


def test_the_relaxation_beats_coordinate_descent_alone():
    gains = []
    for seed in range(4):
        quadratic = wide(seed=seed)
        grid = rw.Grid.symmetric(quadratic.weight.abs().amax(-1, keepdim=True) / 3, bits=3)
        choices = Choices.floor_or_ceil(grid, quadratic.weight)
        relaxed = descend(
            quadratic, grid, rw.rounding.GramAdaRound().relax(quadratic, grid, quadratic.weight, 500), choices
        )
        descended = descend(quadratic, grid, grid.quantize(quadratic.weight), choices)
        losses = [quadratic.loss(grid.dequantize(codes)).sum().item() for codes in (relaxed, descended)]
        gains.append(losses[0] / losses[1])
    assert sum(gains) / len(gains) < 0.97


def before_a_relu(seed, rows=24, cols=24, samples=3000):
    """A wide layer before a ReLU, with inputs of few causes, as activations have, and enough of them to follow it."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, 6, generator=generator) @ torch.randn(6, cols, generator=generator)
    inputs = (causes + 0.5 * torch.randn(samples, cols, generator=generator)).relu()
    weight = torch.randn(1, rows, cols, generator=generator)
    layer = dataclasses.replace(LINEAR.layer, weight_shape=(rows, cols), bias=torch.zeros(rows) - 1)
    targets = layer.apply_matrix(weight, inputs)
    relu = Nonlinearity(torch.relu, (0.0, math.inf))
    return dataclasses.replace(LINEAR, layer=layer, weight=weight, inputs=inputs, targets=targets, nonlinearity=relu)


@pytest.mark.parametrize("free_bias", [False, True])
def test_following_a_relu_beats_relaxing_without_it(free_bias):
    ratios = []
    for seed in range(4):
        case = before_a_relu(seed)
        grid = rw.ranges.WeightMSE().estimate(case.weight, Codebook(3), PerTensor(), Nothing(), "layer")
        statistics = case.statistic(Gram, [300] * 10)
        problem = dataclasses.replace(case.problem(Nothing, grid), statistics=statistics)
        solver = dataclasses.replace(PAPER, free_bias=free_bias, damping=1.0, walk=0)

        def blind(quadratic, grid, choices, slope, solver=solver):
            assert slope is not None
            codes = solver.relax(quadratic, grid, quadratic.weight, solver.steps(quadratic))
            return descend(quadratic, grid, codes, choices)

        freedom = Freedom(free_bias=free_bias, turns=solver.turns, damping=solver.damping)
        without = case.objective(grid, solve_gram(problem, blind, freedom))
        ratios.append(case.objective(grid, solve(solver, problem)) / without)
    assert sum(ratios) / len(ratios) < 0.985


@pytest.mark.parametrize("any_code", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_where_columns_are_few_two_starts_and_a_walk_beat_the_relaxation_alone(any_code):
    ratios = []
    for seed in range(4):
        case = before_a_relu(seed)
        grid = rw.ranges.WeightMSE().estimate(case.weight, Codebook(3), PerTensor(), Nothing(), "layer")
        statistics = case.statistic(Gram, [300] * 10)
        problem = dataclasses.replace(case.problem(Nothing, grid), statistics=statistics)
        full, plain = (rw.rounding.GramAdaRound(any_code=any_code, fit_scale=False, walk=walk) for walk in (10, 0))
        ratios.append(case.objective(grid, solve(full, problem)) / case.objective(grid, solve(plain, problem)))
    assert max(ratios) < 1.01
    assert sum(ratios) / len(ratios) < 0.97


def test_the_same_regularization_serves_layers_of_any_size():
    """Weights a thousand times smaller, inputs a thousand times larger: the same decisions."""
    quadratic = wide()
    grid = rw.Grid.symmetric(torch.full((1, 1, 1), 0.7), bits=3)
    codes = rw.rounding.GramAdaRound().relax(quadratic, grid, quadratic.weight, 500)
    scaled = Quadratic(quadratic.weight / 1024, quadratic.hessian * 1024.0**2, quadratic.pull, quadratic.constant)
    small = rw.Grid.symmetric(grid.scale / 1024, bits=3)
    assert torch.equal(rw.rounding.GramAdaRound().relax(scaled, small, scaled.weight, 500), codes)


def test_it_stops_when_every_variable_is_decided(monkeypatch):
    steps = []
    step = adaround._Adam.step
    monkeypatch.setattr(adaround._Adam, "step", lambda self, gradient: steps.append(step(self, gradient)))
    quadratic = wide()
    grid = rw.Grid.symmetric(torch.full((1, 1, 1), 0.7), bits=3)
    rw.rounding.GramAdaRound(regularization=100.0).relax(quadratic, grid, quadratic.weight, 5000)
    assert 1000 <= len(steps) < 5000  # the first fifth has no regulariser


@pytest.mark.parametrize("name", ["any_code", "free_bias", "fit_scale"])
def test_each_freedom_lowers_the_error_on_the_samples_seen(name):
    """On average over layers; held-out samples may still object to a single one."""
    tied, free = 0.0, 0.0
    for case in tiny_cases():
        tied += math.log(case.objective(case.grid(), solve(PAPER, case.problem(Gram))))
        freer = dataclasses.replace(PAPER, **{name: True})
        free += math.log(case.objective(case.grid(), solve(freer, case.problem(Gram))))
    slack = 0.3 if name == "fit_scale" else 1e-9  # the tiny layers' scales are min-max ones, and good ones already
    assert free <= tied + slack


@pytest.mark.parametrize(("bits", "samples", "free"), [(4, 48, True), (4, 24, False), (2, 24, True)])
def test_by_default_codes_and_scales_are_free_at_two_bits_and_where_positions_are_plentiful(bits, samples, free):
    """9 columns, 16 positions of a sample, an eighth of them held out: 75 for each column, or 37."""
    whole = next(case for case in cases() if case.name == "depthwise conv2d")
    case = dataclasses.replace(
        whole, inputs=whole.inputs[:samples], targets=whole.targets[:samples], codebook=Codebook(bits)
    )
    by_default, bound, unbound = (
        solve(rw.rounding.GramAdaRound(any_code=choice, fit_scale=choice), case.problem(Gram))
        for choice in (None, False, True)
    )
    assert bound.grid is None
    assert unbound.grid is not None
    expected = unbound if free else bound
    assert torch.equal(by_default.codes, expected.codes)
    assert (by_default.grid is None) == (expected.grid is None)
    assert by_default.note == ("weights could take any code, and scales followed" if free else "")
    assert bound.note == unbound.note == ""


@pytest.mark.parametrize("bits", [2, 4])
def test_unless_told_otherwise_scales_are_as_free_as_codes(bits):
    problem = dataclasses.replace(cases()[5], codebook=Codebook(bits)).problem(Gram)
    bound, unbound = (solve(rw.rounding.GramAdaRound(any_code=choice), problem) for choice in (False, True))
    assert bound.grid is None
    assert unbound.grid is not None
    assert rw.rounding.GramAdaRound(any_code=False).floor_or_ceil
    assert not rw.rounding.GramAdaRound(any_code=False, fit_scale=True).floor_or_ceil


def test_what_is_not_free_stays():
    rounding = solve(PAPER, LINEAR.problem(Gram))
    assert rounding.grid is None
    assert rounding.bias_shift is None
    shifted = solve(dataclasses.replace(PAPER, free_bias=True), LINEAR.problem(Gram))
    assert shifted.bias_shift.abs().max() > 0


def test_more_damping_keeps_the_codes_nearer_to_the_weights():
    case = next(case for case in cases() if str(case).endswith("2 bits, symmetric"))
    grid = case.grid()
    distances = []
    for damping in (0.0, 100.0, 1e6):
        solver = rw.rounding.GramAdaRound(any_code=True, fit_scale=False, damping=damping)
        matrix = grid.dequantize(solve(solver, case.problem(Gram, grid)).codes)
        distances.append((matrix - case.weight).square().sum().item())
    nearest = (grid.fake_quantize(case.weight) - case.weight).square().sum().item()
    assert distances[0] >= distances[1] >= distances[2] >= nearest * (1 - 1e-6)
    assert math.isclose(distances[2], nearest, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"regularization": -1.0}, "regularization must not be negative"),
        ({"turns": -1}, "turns, walk and damping must not be negative"),
        ({"walk": -1}, "turns, walk and damping must not be negative"),
        ({"damping": -0.1}, "turns, walk and damping must not be negative"),
        ({"any_code": 1}, "any_code=1"),
        ({"regularization": 1e30}, r"regularization=1e\+30, but it must be a number of at most 1e\+12"),
        ({"learning_rate": 10**400}, "but it must be a number of at most"),
        ({"damping": math.nan}, "damping=nan, but it must be a number"),
        ({"iterations": 10**13}, "iterations=10000000000000, but it must be a whole number of at most"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        rw.rounding.GramAdaRound(**settings)


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.ReLU(), nn.Identity()], ids=repr)
def test_no_layer_is_worse_than_nearest_rounding_on_the_samples_whatever_the_held_out_ones_prefer(activation):
    """So few samples that the held-out ones often prefer nearest rounding, or that with another bias."""
    preferred = 0
    for seed in range(30):
        torch.manual_seed(seed)
        layer, samples = nn.Linear(8, 4), torch.randn(16, 8)
        layer.bias.data -= 0.5
        model = nn.Sequential(layer, activation).eval()
        errors = []
        for solver in (rw.rounding.Nearest(), rw.rounding.GramAdaRound()):
            quantized = rw.quantize(model, samples, rw.Recipe(weights=rw.Weights(bits=3), rounding=solver))
            errors.append((quantized(samples) - model(samples)).double().square().sum().item())
        note = quantized.report.layers[0].note
        assert errors[1] <= errors[0] * 1.00001, (seed, note)
        preferred += "keeps nearest rounding" in note
        assert not ("could take any code" in note and "keeps nearest" in note)
    assert preferred > 0


def test_gptq_without_inputs_that_depend_on_each_other_is_nearest_rounding():
    case = LINEAR
    independent = torch.eye(10).repeat(48, 1, 1)[:, :, :] * 3.0
    clean = dataclasses.replace(case, inputs=independent, targets=case.layer.apply_matrix(case.weight, independent))
    codes = solve(rw.rounding.GPTQ(), clean.problem(Gram)).codes
    assert torch.equal(codes, case.grid().quantize(case.weight))


def test_gptq_is_better_than_nearest_and_tabu_search_than_coordinate_descent():
    means = {}
    for solver in (
        rw.rounding.Nearest(),
        rw.rounding.GPTQ(),
        rw.rounding.CoordinateDescent(),
        rw.rounding.TabuSearch(iterations=300),
    ):
        needs = solver.needs
        logs = [math.log(case.objective(case.grid(), solve(solver, case.problem(needs)))) for case in tiny_cases()]
        means[type(solver).__name__] = sum(logs) / len(logs)
    assert means["GPTQ"] < means["Nearest"]
    assert means["CoordinateDescent"] < means["Nearest"]
    assert means["TabuSearch"] <= means["CoordinateDescent"] + 1e-6


def test_columns_whose_inputs_are_always_zero_are_rounded_to_nearest():
    depthwise = next(case for case in cases() if "depthwise" in str(case))
    inputs = depthwise.inputs.clone()
    inputs[:, 1:3] = 0
    dead = dataclasses.replace(depthwise, inputs=inputs, targets=depthwise.layer.apply_matrix(depthwise.weight, inputs))
    for settings in ({}, {"any_code": True}):
        rounding = solve(rw.rounding.GramAdaRound(**settings, fit_scale=False), dead.problem(Gram))
        assert torch.equal(rounding.codes[1:3], dead.grid().quantize(dead.weight)[1:3])


def test_gptq_without_an_inverse_names_the_layer_and_the_way_out():
    few = dataclasses.replace(LINEAR, inputs=LINEAR.inputs[:2] * 1e3, targets=LINEAR.targets[:2])
    problem = dataclasses.replace(few.problem(Nothing), statistics=few.statistic(Gram, [2]))
    with pytest.raises(RecipeError, match=r"layer 'linear 10 to 4' have no inverse even with so much damping"):
        solve(rw.rounding.GPTQ(damping=1e-30), problem)


def test_the_default_dtype_of_the_caller_does_not_matter():
    problem = LINEAR.problem(Gram)
    wanted = solve(rw.rounding.GramAdaRound(), problem).codes
    torch.set_default_dtype(torch.float64)
    try:
        fresh = dataclasses.replace(problem, statistics=LINEAR.statistic(Gram))
        assert torch.equal(solve(rw.rounding.GramAdaRound(), fresh).codes, wanted)
        sgd = dataclasses.replace(problem, statistics=LINEAR.statistic(Samples))
        assert solve(rw.rounding.AdaRound(iterations=3), sgd).codes.dtype == torch.int32
    finally:
        torch.set_default_dtype(torch.float32)
