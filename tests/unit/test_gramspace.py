"""The quadratic objective, its closed forms, coordinate descent, and what stands around a search."""

import dataclasses
import itertools
import math

import pytest
import torch

from roundwise.graph.nonlinearity import Nonlinearity
from roundwise.methods import reconstruction as solution
from roundwise.methods.interfaces import check_answer
from roundwise.methods.ranges import MinMax
from roundwise.methods.reconstruction import Freedom, _Candidate, _Follower, _keep, solve
from roundwise.methods.rounding import GramAdaRound
from roundwise.methods.rounding.gram_adaround import exhaust
from roundwise.numerics.grid import Codebook, Grid, PerGroup, PerTensor
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices, descend
from roundwise.numerics.search.tabu import walk
from roundwise.statistics import Gram, Nothing
from roundwise.testing import cases, tiny_cases

CASES = pytest.mark.parametrize("case", cases(), ids=str)
SOME = pytest.mark.parametrize("case", tiny_cases(), ids=str)


def moments(case):
    gram = case.statistic(Gram)
    return gram.fit.merge(gram.held_out)


def bias(case):
    return case.layer.bias.reshape(case.weight.shape[:2])


def errors(case, matrix, shift=0.0):
    """Mean squared error of every row's output, from the samples, in float64."""
    columns = case.layer.unfold(case.inputs.double())
    targets = case.layer.fold_outputs(case.targets.double())
    outputs = matrix.double() @ columns + (bias(case).double() + shift).unsqueeze(-1)
    return (outputs - targets).square().mean(-1)


def errors_of(case, answer):
    """The same for a solver's answer."""
    shift = 0.0 if answer.bias_shift is None else answer.bias_shift
    return errors(case, (answer.grid or case.grid()).dequantize(answer.codes), shift)


def some_matrix(case, seed=0):
    generator = torch.Generator().manual_seed(seed)
    step = case.weight.abs().mean() + 1e-20
    return case.weight + step * torch.randn(case.weight.shape, generator=generator)


def scale_of(case):
    """A size that squared errors can be compared with; products of squares near 1e-38 lose digits."""
    return 1e-20 + case.targets.float().square().mean().item() + case.weight.square().sum().item()


@CASES
def test_the_quadratic_is_the_mean_squared_error_of_the_outputs(case):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=False)
    matrix = some_matrix(case)
    torch.testing.assert_close(
        quadratic.loss(matrix).double(), errors(case, matrix), rtol=1e-3, atol=1e-5 * scale_of(case)
    )


@CASES
def test_with_a_free_bias_it_is_the_error_at_the_best_bias(case):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=True)
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
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=free_bias)
    weight = case.weight.clone().requires_grad_()
    quadratic.loss(weight).sum().backward()
    torch.testing.assert_close(weight.grad, -2 * quadratic.pull)


@SOME
def test_the_real_valued_minimum_is_below_everything_else(case):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=True)
    least = quadratic.loss(quadratic.minimum(1e-6))
    for seed in range(5):
        assert (quadratic.loss(some_matrix(case, seed)) >= least).all()
    assert (quadratic.loss(case.weight) >= least * (1 - 1e-3)).all()


@SOME
def test_the_best_scale_is_better_than_others(case):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=False)
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


@CASES
@pytest.mark.parametrize("any_code", [False, True])
def test_no_sweep_of_coordinate_descent_raises_the_objective_of_any_row(case, any_code):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=True)
    grid = case.grid()
    choices = Choices.all(grid, case.weight) if any_code else Choices.floor_or_ceil(grid, case.weight)
    codes = grid.quantize(case.weight)
    loss = quadratic.loss(grid.dequantize(codes))
    for _ in range(4):
        codes = descend(quadratic, grid, codes, choices, sweeps=1)
        assert (codes >= choices.low).all()
        assert (codes <= choices.high).all()
        now = quadratic.loss(grid.dequantize(codes))
        assert (now <= loss + 1e-5 * scale_of(case)).all()
        loss = now


@SOME
def test_where_coordinate_descent_ends_no_single_change_helps(case):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=False)
    grid = case.grid()
    codes = descend(quadratic, grid, grid.quantize(case.weight), Choices.all(grid, case.weight))
    loss = quadratic.loss(grid.dequantize(codes))
    for column, step in itertools.product(range(codes.shape[-1]), (-1, 1)):
        other = codes.clone()
        other[..., column] = grid.clip(other[..., column] + step)
        assert (quadratic.loss(grid.dequantize(other)) >= loss * (1 - 1e-4) - 1e-7).all()


@pytest.mark.parametrize("block", [7, 64])
def test_coordinate_descent_over_several_blocks_keeps_count_of_its_slopes(block, monkeypatch):
    monkeypatch.setattr("roundwise.numerics.search.descent.BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 200, 90, generator=generator) + torch.randn(2, 200, 1, generator=generator)
    weight = torch.randn(2, 6, 90, generator=generator)
    pull = 0.1 * torch.randn(2, 6, 90, generator=generator)
    quadratic = Quadratic(weight, root.mT @ root / 200, pull, torch.zeros(2, 6))
    grid = Grid.symmetric(torch.full((1, 1, 1), 0.4), bits=3)
    codes = descend(quadratic, grid, grid.quantize(weight), Choices.all(grid, weight))
    loss = quadratic.loss(grid.dequantize(codes))
    assert (loss < quadratic.loss(grid.fake_quantize(weight))).all()
    for column, step in itertools.product(range(90), (-1, 1)):
        other = codes.clone()
        other[..., column] = grid.clip(other[..., column] + step)
        assert (quadratic.loss(grid.dequantize(other)) >= loss - 1e-4).all()


@SOME
@pytest.mark.parametrize("any_code", [False, True])
def test_a_tabu_walk_makes_no_row_worse_and_stays_within_its_choices(case, any_code):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=True)
    grid = case.grid()
    choices = Choices.all(grid, case.weight) if any_code else Choices.floor_or_ceil(grid, case.weight)
    start = descend(quadratic, grid, grid.quantize(case.weight), choices)
    codes = walk(quadratic, grid, start, choices, torch.Generator().manual_seed(0), moves=100, tenure=2)
    assert (codes >= choices.low).all()
    assert (codes <= choices.high).all()
    before, after = (quadratic.loss(grid.dequantize(it)) for it in (start, codes))
    assert (after <= before + 1e-5 * scale_of(case)).all()


def test_every_row_descends_to_its_end_however_soon_others_have_reached_theirs():
    generator = torch.Generator().manual_seed(1)
    weight, pull = torch.randn(2, 1, 60, 12, generator=generator).unbind()
    hessian = whole_problem(linear_case()).statistics.fit.second / 256
    quadratic = Quadratic(weight, hessian, pull, torch.zeros(1, 60))
    grid = MinMax().estimate(weight, Codebook(3), PerTensor(), Nothing(), "")
    choices, start = Choices.all(grid, weight), grid.quantize(weight)
    ends = [descend(quadratic, grid, start, choices, sweeps) for sweeps in range(1, 50)]
    last = [
        next(n for n, codes in enumerate(ends) if torch.equal(codes[:, row], ends[-1][:, row])) for row in range(60)
    ]
    assert len(set(last)) > 3  # they do not all end at once
    slope = (grid.dequantize(ends[-1]) - weight) @ hessian - pull
    gain = grid.scale.square() * hessian.diagonal(dim1=1, dim2=2).unsqueeze(1) - 2 * grid.scale * slope.abs()
    inside = torch.where(slope > 0, ends[-1] > choices.low, ends[-1] < choices.high)
    assert (gain[inside] > -1e-4).all()
    losses = torch.stack([quadratic.loss(grid.dequantize(codes)) for codes in ends])
    assert (losses.diff(dim=0) <= 1e-4).all()


@SOME
def test_a_tabu_walk_finds_the_best_rounding_of_a_tiny_layer(case):
    quadratic = Quadratic.of(moments(case), case.weight, bias(case), free_bias=False)
    grid = case.grid()
    choices = Choices.floor_or_ceil(grid, case.weight)
    start = descend(quadratic, grid, grid.quantize(case.weight), choices)
    codes = walk(quadratic, grid, start, choices, torch.Generator().manual_seed(0))
    best = quadratic.loss(grid.dequantize(exhaust(quadratic, grid, case.weight))).sum()
    assert quadratic.loss(grid.dequantize(codes)).sum() <= best * 1.02 + 1e-6


def test_on_a_tabu_walk_a_row_that_may_not_move_stays():
    case = linear_case()
    quadratic = Quadratic.of(whole_problem(case).statistics.fit, case.weight, None, free_bias=False)
    grid = case.grid()
    codes = grid.quantize(case.weight).float()
    free = torch.tensor([False, True, False, True, False])[:, None]
    choices = Choices(codes - free.float(), codes + free.float())
    walked = walk(quadratic, grid, codes, choices, torch.Generator().manual_seed(0), moves=50, tenure=2)
    moved = (walked != codes).any(-1)
    assert moved.any()
    assert not moved[0, ~free.flatten()].any()


def test_every_row_keeps_the_better_of_two_candidates_but_not_where_they_share_a_scale_that_moved():
    codes, bias = torch.arange(6, dtype=torch.int32).reshape(1, 3, 2), torch.zeros(1, 3)
    shared, own = Grid.symmetric(torch.ones(1, 1, 1), 4), Grid.symmetric(torch.ones(1, 3, 1), 4)
    loss, other_loss = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 1.0, 2.5]])

    def candidates(grid, other_grid):
        return _Candidate(codes, grid, bias), _Candidate(codes + 10, other_grid, bias + 10)

    for grid, other_grid in (
        (shared, shared),
        (own, own),
        (own, dataclasses.replace(own, scale=own.scale + 10)),
    ):
        one, other = candidates(grid, other_grid)
        kept, least = _keep(one, loss, other, other_loss)
        assert least.tolist() == [[1.0, 1.0, 2.5]]
        assert kept.codes.tolist() == [[[0, 1], [12, 13], [14, 15]]]
        assert kept.bias.tolist() == [[0.0, 10.0, 10.0]]
        wanted = [1.0, 1.0, 1.0] if other_grid is grid else [1.0, 11.0, 11.0]
        assert kept.grid.scale.expand(1, 3, 1).flatten().tolist() == wanted
    one, other = candidates(shared, dataclasses.replace(shared, scale=shared.scale + 10))
    assert _keep(one, loss, other, other_loss) == (other, other_loss)
    assert _keep(other, other_loss, one, loss) == (other, other_loss)


@pytest.mark.parametrize("case", [case for case in cases() if case.nonlinearity and case.nonlinearity.limits], ids=str)
def test_following_the_activation_function_lowers_the_objective_that_contains_it(case):
    grid = MinMax().estimate(case.weight, Codebook(2), case.granularity, Nothing(), case.name)

    def search(quadratic, grid, choices, follow):
        return descend(quadratic, grid, grid.quantize(quadratic.weight), choices)

    # All samples to learn from, none held out: then the turns may only help.
    gram = case.statistic(Gram)
    whole = dataclasses.replace(case.problem(Gram, grid))
    assert whole.statistics.held_out.count  # no more waits to be taken in
    whole.statistics._held_out.moments = type(gram.fit).zeros(case.layer.matrix_shape, gram.layer.device)
    fit = torch.arange(case.samples) % 8 != 7
    seen = dataclasses.replace(case, inputs=case.inputs[fit], targets=case.targets[fit])
    losses = [
        seen.objective(grid, solve(whole, search, Freedom(any_code=True, free_bias=True, turns=turns)))
        for turns in (0, 1, 3)
    ]
    assert losses[2] <= losses[0] * (1 + 1e-5)
    assert losses[1] <= losses[0] * (1 + 1e-5)


@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 2.0)], ids=str)
def test_targets_for_the_activation_function_are_the_ones_that_majorise_it(limits):
    low, high = limits
    nonlinearity = Nonlinearity(lambda values: values.clamp(*limits), limits)
    problem = dataclasses.replace(whole_problem(linear_case()), nonlinearity=nonlinearity)
    gram, nearest = problem.statistics, solution._nearest(problem)
    turns = solution._Turns(problem, nearest, Freedom(turns=1), descend, gram.fit, gram.again)
    y, z = torch.meshgrid(*[torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 6.0, 7.0])] * 2, indexing="ij")
    wanted = torch.where(y <= low, z.clamp(max=low), torch.where(y >= high, z.clamp(min=high), y))
    change = turns._change(y, z)
    assert torch.equal(change, wanted - y)
    target = y + change
    majorised = (target - z).square() >= (y.clamp(low, high) - z.clamp(low, high)).square()
    assert majorised.all()


@pytest.mark.parametrize("free_bias", [False, True])
@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)], ids=["ReLU", "ReLU6", "hardtanh"])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_slope_is_half_the_gradient_of_the_objective_with_its_activation_function(limits, free_bias, grouped):
    grouped_case = next(case for case in cases() if case.layer.groups > 1 and not case.layer.transposed)
    case = grouped_case if grouped else linear_case(mean=0.5)
    gram = whole_problem(case).statistics
    plain = Quadratic.of(gram.fit, case.weight, bias(case), free_bias=free_bias)
    charge = torch.full((len(case.weight),), 0.3)
    follower = _Follower(plain, charge, bias(case), limits, gram.minibatches(10**6))
    (pairs,) = gram.again()
    matrix = case.grid().fake_quantize(case.weight).requires_grad_()
    with torch.enable_grad():
        own = follower.bias(matrix.detach())
        if free_bias:  # the level stays, so the bias moves with the weights
            own = own - ((matrix - matrix.detach()) * plain.input_mean.unsqueeze(1)).sum(-1)
        outputs = pairs.columns @ matrix.mT + own.unsqueeze(1)
        error = (outputs.clamp(*limits) - pairs.targets.clamp(*limits)).square().mean(1).sum()
        charged = error + 0.3 * (matrix - case.weight).square().sum()
        (gradient,) = torch.autograd.grad(charged, matrix)
    torch.testing.assert_close(2 * follower(matrix.detach()), gradient, rtol=1e-4, atol=1e-4)


def test_a_free_bias_moves_to_where_the_error_with_its_activation_function_is_least():
    case = linear_case(mean=0.5)
    gram = whole_problem(case).statistics
    plain = Quadratic.of(gram.fit, case.weight, torch.zeros(1, 5), free_bias=True)
    follower = _Follower(plain, torch.zeros(1), torch.zeros(1, 5), (0.0, math.inf), gram.minibatches(10**6))
    (pairs,) = gram.again()
    matrix = case.grid().fake_quantize(case.weight)
    for _ in range(200):
        follower(matrix)

    def loss(shift):
        outputs = pairs.columns @ matrix.mT + (follower.bias(matrix) + shift).unsqueeze(1)
        return (outputs.relu() - pairs.targets.relu()).square().mean(1)

    for shift in (-0.1, -0.01, 0.01, 0.1):
        assert (loss(shift) > loss(0.0)).all()


def test_where_held_out_samples_disagree_nearest_rounding_is_kept_and_said_so():
    case = cases()[0]
    problem = case.problem(Gram)
    grid = problem.grid

    def worst(quadratic, grid, choices, follow):
        return descend(quadratic, grid, grid.quantize(quadratic.weight), choices)

    held_out = slice(7, None, 8)
    fitted = solve(problem, worst, Freedom(any_code=True))
    assert not torch.equal(fitted.codes, grid.quantize(case.weight))
    # Held-out samples on which the float weights themselves are right, and large: only nearest is near them.
    odd = dataclasses.replace(case, inputs=case.inputs.clone(), targets=case.targets.clone())
    generator = torch.Generator().manual_seed(1)
    odd.inputs[held_out] = torch.randn(odd.inputs[held_out].shape, generator=generator) * 100
    odd.targets[held_out] = odd.layer.apply_matrix(odd.weight, odd.inputs[held_out])
    kept = solve(odd.problem(Gram), worst, Freedom(any_code=True))
    assert torch.equal(kept.codes, grid.quantize(case.weight))
    assert "keeps nearest rounding: " in kept.note
    assert kept.grid is None
    assert kept.bias_shift is None
    # With the same mean error everywhere, nearest rounding is better still with a bias for it, which is not as it was.
    odd = dataclasses.replace(odd, targets=odd.targets + 1000)
    kept = solve(odd.problem(Gram), worst, Freedom(any_code=True, free_bias=True))
    assert torch.equal(kept.codes, grid.quantize(case.weight))
    assert "keeps nearest rounding, with a bias that takes up its mean error: " in kept.note
    assert (kept.bias_shift > 900).all()


def with_and_without_held_out_samples_at_the_end(case, monkeypatch, **freedom):
    """Answers that count them at the end too, and that do not."""

    def search(quadratic, grid, choices, follow):
        return descend(quadratic, grid, grid.quantize(quadratic.weight), choices)

    for plenty in (10**9, 0):
        monkeypatch.setattr(solution, "PLENTY", plenty)
        yield solve(case.problem(Gram), search, Freedom(any_code=True, free_bias=True, turns=3, **freedom))


@CASES
@pytest.mark.parametrize("fit_scale", [False, True])
def test_counting_held_out_samples_at_the_end_raises_the_objective_over_all_samples_for_no_row(
    case, fit_scale, monkeypatch
):
    one, other = with_and_without_held_out_samples_at_the_end(case, monkeypatch, damping=10.0, fit_scale=fit_scale)
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
    one, other = with_and_without_held_out_samples_at_the_end(case, monkeypatch)
    before, after = errors_of(case, other), errors_of(case, one)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.999 * before.sum()


@pytest.mark.parametrize("limits", [None, (0.0, math.inf)])
def test_a_bias_that_is_not_free_stays_when_held_out_samples_are_counted_too(limits):
    case = linear_case(samples=32)
    clamps = (c.nonlinearity for c in cases() if c.nonlinearity and c.nonlinearity.limits)
    nonlinearity = None if limits is None else next(clamps)
    problem = dataclasses.replace(case.problem(Gram), bias_is_free=False, nonlinearity=nonlinearity)
    answer = GramAdaRound(damping=0.0).solve(problem, torch.Generator().manual_seed(0))
    assert not answer.note
    check_answer(answer, problem, GramAdaRound())
    assert answer.bias_shift is None


def linear_case(mean=0.0, samples=256):
    """A layer of 12 inputs, correlated, around a mean."""
    base = cases()[0]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 12, generator=generator) @ torch.randn(12, 12, generator=generator) + mean
    weight = torch.randn(1, 5, 12, generator=generator)
    layer = dataclasses.replace(base.layer, weight_shape=(5, 12), bias=torch.zeros(5))
    return dataclasses.replace(
        base, layer=layer, weight=weight, inputs=inputs, targets=layer.apply_matrix(weight, inputs), nonlinearity=None
    )


def whole_problem(case):
    return dataclasses.replace(case.problem(Nothing), statistics=case.statistic(Gram, [case.samples]))


def test_means_that_drown_the_rest_do_no_more_harm_than_nearest_rounding_with_a_bias():
    case = linear_case(mean=30_000.0)
    problem = whole_problem(case)

    def search(quadratic, grid, choices, follow):
        return descend(quadratic, grid, grid.quantize(quadratic.weight), choices)

    def spread(rounding):
        """What no bias can take away."""
        matrix = (rounding.grid or problem.grid).dequantize(rounding.codes)[0].double()
        return (case.inputs.double() @ (matrix - case.weight[0].double()).T).var(0).sum().item()

    chosen = solve(problem, search, Freedom(any_code=True, free_bias=True))
    nearest = dataclasses.replace(chosen, codes=problem.grid.quantize(case.weight), grid=None)
    assert spread(chosen) <= spread(nearest) * 1.05


def test_of_one_sample_next_to_nothing_is_learnt_and_the_report_can_say_so():
    case = linear_case(samples=1)
    problem = whole_problem(case)
    quadratic = Quadratic.of(problem.statistics.fit, case.weight, None, free_bias=True)
    quadratic = quadratic.damped(quadratic.charge(1.0))
    grid = problem.grid
    codes = descend(quadratic, grid, grid.quantize(case.weight), Choices.all(grid, case.weight))
    assert torch.equal(codes, grid.quantize(case.weight))
    rounding = solve(problem, lambda *_: codes, Freedom(any_code=True, free_bias=True, damping=1.0))
    assert "single sample" in rounding.note


def test_more_samples_are_damped_less():
    added = []
    for samples in (16, 256, 4096):
        quadratic = Quadratic.of(
            linear_case(samples=samples).statistic(Gram, [samples]).fit, torch.randn(1, 5, 12), None, free_bias=True
        )
        added.append(quadratic.charge(1.0).item())
    assert added[0] > 3 * added[1] > 9 * added[2] > 0
