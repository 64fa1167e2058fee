"""GramAdaRound: its settings, its defaults, and how near the optimum it comes."""

import dataclasses
import math

import pytest
import torch
from recipes import quantizing
from small_layers import errors_of, linear_case, scale_of
from thirds import in_thirds
from torch import nn

import roundwise as rw
from roundwise.errors import RecipeError
from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.methods.answer_checks import check_answer
from roundwise.methods.rounding import gram_adaround
from roundwise.numerics.grid import Codebook, PerTensor
from roundwise.statistics import Gram, Nothing, Samples
from roundwise.testing import best_rounding, cases, tiny_cases
from roundwise.testing.solver_checks import solve

PAPER = rw.rounding.GramAdaRound(any_code=False, free_bias=False, fit_scale=False)
LINEAR = cases()[0]


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


@pytest.mark.slow
@pytest.mark.parametrize("free_bias", [False, True])
def test_gradients_behind_a_relu_beat_those_of_the_quadratic(free_bias, monkeypatch):
    ratios = []
    for seed in range(4):
        case = before_a_relu(seed)
        grid = rw.ranges.WeightMSE().estimate(case.weight, Codebook(3), PerTensor(), Nothing(), "layer")
        statistics = case.statistic(Gram, [300] * 10)
        problem = dataclasses.replace(case.problem(Nothing, grid), statistics=statistics)
        solver = dataclasses.replace(PAPER, free_bias=free_bias, shrinkage=1.0, tabu_moves_per_column=0)
        behind = case.objective(grid, solve(solver, problem))
        with monkeypatch.context() as patch:
            patch.setattr(gram_adaround, "ENOUGH_FOR_MINIBATCHES", 10**9)
            ratios.append(behind / case.objective(grid, solve(solver, problem)))
    assert sum(ratios) / len(ratios) < 0.985


@pytest.mark.slow
@pytest.mark.parametrize("any_code", [False, True])
def test_where_columns_are_few_two_starts_and_a_walk_beat_the_relaxation_alone(any_code):
    ratios = []
    for seed in range(4):
        case = before_a_relu(seed)
        grid = rw.ranges.WeightMSE().estimate(case.weight, Codebook(3), PerTensor(), Nothing(), "layer")
        statistics = case.statistic(Gram, [300] * 10)
        problem = dataclasses.replace(case.problem(Nothing, grid), statistics=statistics)
        full, plain = (
            rw.rounding.GramAdaRound(any_code=any_code, fit_scale=False, tabu_moves_per_column=moves)
            for moves in (10, 0)
        )
        ratios.append(case.objective(grid, solve(full, problem)) / case.objective(grid, solve(plain, problem)))
    assert max(ratios) < 1.01
    assert sum(ratios) / len(ratios) < 0.97


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
    assert by_default.note == ("any code was allowed, and scales were fitted to the codes" if free else "")
    assert bound.note == unbound.note == ""


@pytest.mark.parametrize("bits", [2, 4])
def test_unless_told_otherwise_scales_are_as_free_as_codes(bits):
    problem = dataclasses.replace(cases()[5], codebook=Codebook(bits)).problem(Gram)
    bound, unbound = (solve(rw.rounding.GramAdaRound(any_code=choice), problem) for choice in (False, True))
    assert bound.grid is None
    assert unbound.grid is not None
    assert rw.rounding.GramAdaRound(any_code=False).traits.floor_or_ceil
    assert not rw.rounding.GramAdaRound(any_code=False, fit_scale=True).traits.floor_or_ceil


def test_without_alternations_no_scale_is_fitted_and_the_note_does_not_say_so():
    problem = dataclasses.replace(cases()[0], codebook=Codebook(2)).problem(Gram)
    by_default, none = (solve(rw.rounding.GramAdaRound(alternations=n, fit_scale=True), problem) for n in (3, 0))
    assert by_default.grid is not None
    assert "scale" in by_default.note
    assert none.grid is None
    assert "any code" in none.note
    assert "scale" not in none.note


def test_what_is_not_free_stays():
    rounding = solve(PAPER, LINEAR.problem(Gram))
    assert rounding.grid is None
    assert rounding.bias_shift is None
    shifted = solve(dataclasses.replace(PAPER, free_bias=True), LINEAR.problem(Gram))
    assert shifted.bias_shift.abs().max() > 0


def test_more_shrinkage_keeps_the_codes_nearer_to_the_weights():
    case = next(case for case in cases() if str(case).endswith("2 bits, symmetric"))
    grid = case.grid()
    distances = []
    for shrinkage in (0.0, 100.0, 1e6):
        solver = rw.rounding.GramAdaRound(any_code=True, fit_scale=False, shrinkage=shrinkage)
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
        ({"alternations": -1}, "alternations must not be negative"),
        ({"tabu_moves_per_column": -1}, "tabu_moves_per_column must not be negative"),
        ({"shrinkage": -0.1}, "shrinkage must not be negative"),
        ({"any_code": 1}, "any_code=1"),
        ({"regularization": 1e30}, r"regularization=1e\+30, but it must be a number of at most 1e\+12"),
        ({"learning_rate": 10**400}, "but it must be a number of at most"),
        ({"shrinkage": math.nan}, "shrinkage=nan, but it must be a number"),
        ({"iterations": 10**13}, "iterations=10000000000000, but it must be a whole number of at most"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(RecipeError, match=words):
        rw.rounding.GramAdaRound(**settings)


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 30), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.ReLU(), nn.Identity()], ids=repr)
def test_no_layer_is_worse_than_nearest_rounding_on_the_samples_whatever_the_held_out_ones_prefer(activation, seeds):
    """So few samples that the held-out ones often prefer nearest rounding, or that with another bias."""
    preferred = 0
    for seed in seeds:
        torch.manual_seed(seed)
        layer, samples = nn.Linear(8, 4), torch.randn(16, 8)
        layer.bias.data -= 0.5
        model = nn.Sequential(layer, activation).eval()
        errors = []
        for solver in (rw.rounding.Nearest(), rw.rounding.GramAdaRound()):
            quantized = rw.quantize(model, samples, quantizing(weights=rw.Weights(bits=3), rounding=solver))
            errors.append((quantized(samples) - model(samples)).double().square().sum().item())
        note = quantized.report.layers[0].note
        assert errors[1] <= errors[0] * 1.00001, (seed, note)
        preferred += "keeps nearest rounding" in note
        assert not ("any code was allowed" in note and "keeps nearest" in note)
    assert preferred > 0


def test_gptq_is_better_than_nearest_and_tabu_search_than_coordinate_descent():
    means = {}
    for solver in (
        rw.rounding.Nearest(),
        rw.rounding.GPTQ(),
        rw.rounding.CoordinateDescent(),
        rw.rounding.TabuSearch(moves=300),
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


def with_and_without_line_10(case, monkeypatch, **settings):
    """Answers for which all samples count at the end, and for which the held-out ones do not."""
    solver = rw.rounding.GramAdaRound(any_code=True, free_bias=False, **settings)
    for plenty in (10**9, 0):
        monkeypatch.setattr(gram_adaround, "PLENTY", plenty)
        yield solve(solver, case.problem(Gram))


@pytest.mark.parametrize(("case", "fit_scale"), in_thirds(cases(), {"scale": False, "fitted scale": True}))
def test_counting_held_out_samples_at_the_end_raises_the_objective_over_all_samples_for_no_row(
    case, fit_scale, monkeypatch
):
    one, other = with_and_without_line_10(case, monkeypatch, fit_scale=fit_scale)
    if case.nonlinearity is not None and case.nonlinearity.limits is not None:
        least, most = (case.objective(case.grid(), answer) for answer in (one, other))
    else:
        least, most = errors_of(case, one), errors_of(case, other)
        if fit_scale and case.grid().scale.shape[1] == 1:
            least, most = least.sum(), most.sum()
    slack = 1e-5 * scale_of(case)
    assert (torch.as_tensor(least) <= torch.as_tensor(most) * (1 + 1e-4) + slack).all()


def test_where_positions_are_few_for_the_columns_held_out_samples_change_codes(monkeypatch):
    case = linear_case(samples=32)
    one, other = with_and_without_line_10(case, monkeypatch, fit_scale=False, shrinkage=0.0)
    before, after = errors_of(case, other), errors_of(case, one)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.999 * before.sum()


@pytest.mark.parametrize("limits", [None, (0.0, math.inf)])
def test_a_bias_that_is_not_free_stays_when_held_out_samples_are_counted_too(limits):
    case = linear_case(samples=32)
    clamps = (c.nonlinearity for c in cases() if c.nonlinearity and c.nonlinearity.limits)
    nonlinearity = None if limits is None else next(clamps)
    problem = dataclasses.replace(case.problem(Gram), bias_is_free=False, nonlinearity=nonlinearity)
    answer = solve(rw.rounding.GramAdaRound(shrinkage=0.0), problem)
    assert not answer.note
    check_answer(answer, problem, rw.rounding.GramAdaRound())
    assert answer.bias_shift is None
