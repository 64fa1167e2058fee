"""What solvers on second moments share: candidates, the alternation with targets for a clamp, the held-out check."""

import dataclasses
import math
import re

import pytest
import torch
from small_layers import linear_case, whole_problem

import roundwise as rw
from roundwise.methods.ranges import MinMax
from roundwise.methods.reconstruction.loop import Alternation
from roundwise.methods.reconstruction.objectives import Candidate, Objectives, Scored, as_rounding, best_rows
from roundwise.methods.reconstruction.referee import held_out_errors, judge
from roundwise.numerics.grid import Codebook, Grid
from roundwise.numerics.search.choices import Choices
from roundwise.statistics import Gram, Nothing
from roundwise.testing import cases
from roundwise.testing.solver_checks import solve

CLAMPED = [case for case in cases() if case.nonlinearity and case.nonlinearity.limits]


def test_every_row_keeps_the_better_of_two_candidates_but_not_where_they_share_a_scale_that_moved():
    codes, bias = torch.arange(6, dtype=torch.int32).reshape(1, 3, 2), torch.zeros(1, 3)
    shared, own = Grid.symmetric(torch.ones(1, 1, 1), 4), Grid.symmetric(torch.ones(1, 3, 1), 4)
    loss, other_loss = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[2.0, 1.0, 2.5]])

    def candidates(grid, other_grid):
        one, other = Candidate(codes, grid, bias), Candidate(codes + 10, other_grid, bias + 10)
        return Scored(one, loss), Scored(other, other_loss)

    for grid, other_grid in (
        (shared, shared),
        (own, own),
        (own, dataclasses.replace(own, scale=own.scale + 10)),
    ):
        kept, least = best_rows(*candidates(grid, other_grid))
        assert least.tolist() == [[1.0, 1.0, 2.5]]
        assert kept.codes.tolist() == [[[0, 1], [12, 13], [14, 15]]]
        assert kept.bias.tolist() == [[0.0, 10.0, 10.0]]
        wanted = [1.0, 1.0, 1.0] if other_grid is grid else [1.0, 11.0, 11.0]
        assert kept.grid.scale.expand(1, 3, 1).flatten().tolist() == wanted
    one, other = candidates(shared, dataclasses.replace(shared, scale=shared.scale + 10))
    assert best_rows(one, other) is other
    assert best_rows(other, one) is other


@pytest.mark.parametrize("case", CLAMPED, ids=str)
def test_the_alternation_lowers_the_loss_behind_the_clamp(case):
    grid = MinMax().estimate(case.weight, Codebook(2), case.granularity, Nothing(), case.name)
    problem = case.problem(Gram, grid)
    fit = torch.arange(case.samples) % 8 != 7
    seen = dataclasses.replace(case, inputs=case.inputs[fit], targets=case.targets[fit])
    objectives = Objectives.of(problem, free_bias=True, clamped=True)
    losses = []
    for alternations in (0, 1, 3):
        choices, generator = Choices.all(grid, case.weight), torch.Generator().manual_seed(0)
        alternation = Alternation(choices, alternations, fit_scale=False, generator=generator)
        codes = alternation.improve(objectives.shrunk, grid, objectives.nearest.codes)
        found = alternation.run(objectives, objectives.no_worse_than_nearest(codes)).candidate
        losses.append(seen.objective(grid, as_rounding(problem, found, "")))
    assert losses[2] <= losses[1] * (1 + 1e-5)
    assert losses[1] <= losses[0] * (1 + 1e-5)
    assert losses[2] < losses[0]


@pytest.mark.parametrize("case", CLAMPED, ids=str)
def test_the_majorising_quadratic_scores_candidates_by_the_loss_behind_the_clamp(case):
    """Its scores are sums over positions, of the samples that are not held out."""
    problem = case.problem(Gram)
    objectives = Objectives.of(problem, free_bias=False, clamped=True)
    (scored,) = objectives.majorise(objectives.nearest)[1]
    fit = torch.arange(case.samples) % 8 != 7
    seen = dataclasses.replace(case, inputs=case.inputs[fit], targets=case.targets[fit])
    wanted = seen.objective(problem.grid, as_rounding(problem, objectives.nearest, ""))
    assert math.isclose(float(scored.losses.sum()) / problem.statistics.fit.count, wanted, rel_tol=1e-4)


def with_other_held_out_samples(case):
    """Held-out samples on which the float weights themselves are right, and large: only nearest is near them."""
    held_out = slice(7, None, 8)
    odd = dataclasses.replace(case, inputs=case.inputs.clone(), targets=case.targets.clone())
    generator = torch.Generator().manual_seed(1)
    odd.inputs[held_out] = torch.randn(odd.inputs[held_out].shape, generator=generator) * 100
    odd.targets[held_out] = odd.layer.apply_matrix(odd.weight, odd.inputs[held_out])
    return odd


def test_where_held_out_samples_disagree_nearest_rounding_is_kept_and_said_so():
    case = cases()[0]
    nearest = case.grid().quantize(case.weight)
    fitted = solve(rw.rounding.CoordinateDescent(), case.problem(Gram))
    assert not torch.equal(fitted.codes, nearest)
    assert not fitted.note
    odd = with_other_held_out_samples(case)
    kept = solve(rw.rounding.CoordinateDescent(), odd.problem(Gram))
    assert torch.equal(kept.codes, nearest)
    assert "nearest" in kept.note
    assert kept.grid is None
    assert kept.bias_shift is None
    # With the same mean error everywhere, nearest rounding is better still with a bias for it, which is not as it was.
    odd = dataclasses.replace(odd, targets=odd.targets + 1000)
    kept = solve(rw.rounding.CoordinateDescent(free_bias=True), odd.problem(Gram))
    assert torch.equal(kept.codes, nearest)
    assert "nearest" in kept.note
    assert "bias" in kept.note
    assert (kept.bias_shift > 900).all()


@pytest.mark.parametrize("case", CLAMPED, ids=str)
def test_the_candidate_that_is_kept_has_the_smallest_held_out_error(case):
    """Behind the clamp, whether or not the clamp is part of the objective."""
    problem = case.problem(Gram)
    for clamped in (False, True):
        objectives = Objectives.of(problem, free_bias=True, clamped=clamped)
        up = Candidate(problem.grid.clip(objectives.nearest.codes + 1), problem.grid, problem.bias)
        verdict = judge(objectives, up)
        assert verdict.candidate is not up
        kept, worse, nearest = held_out_errors(objectives, verdict.candidate, up, objectives.nearest)
        assert kept <= nearest < worse


def test_the_note_on_nearest_rounding_gives_a_difference_where_the_errors_have_the_same_digits():
    problem = cases()[0].problem(Gram)
    objectives = Objectives.of(problem, free_bias=False)
    notes = {}
    for distance in (0.0, *(sign * 10.0**-power for power in range(1, 7) for sign in (1, -1))):
        other = objectives.nearest._replace(bias=problem.bias + distance)
        kept, note = judge(objectives, other)
        error, error_nearest = held_out_errors(objectives, other, objectives.nearest)
        if kept is objectives.nearest:
            notes[f"{error_nearest / error:.4g}"] = note
    assert re.search(r"\de-0[56]", notes.pop("1"))
    assert notes
    assert all(f" {ratio} times" in note for ratio, note in notes.items())


def test_means_that_drown_the_rest_do_no_more_harm_than_nearest_rounding_with_a_bias():
    case = linear_case(mean=30_000.0)
    problem = whole_problem(case)

    def spread(codes):
        """The error that no bias can take away."""
        matrix = problem.grid.dequantize(codes)[0].double()
        return (case.inputs.double() @ (matrix - case.weight[0].double()).T).var(0).sum().item()

    chosen = solve(rw.rounding.CoordinateDescent(free_bias=True), problem)
    assert spread(chosen.codes) <= spread(problem.grid.quantize(case.weight)) * 1.05


@pytest.mark.parametrize("solver", [rw.rounding.CoordinateDescent(), rw.rounding.GramAdaRound()], ids=repr)
def test_of_one_sample_nothing_can_be_held_out_and_the_report_says_so(solver):
    assert "single" in solve(solver, whole_problem(linear_case(samples=1))).note
    assert "single" not in solve(solver, whole_problem(linear_case(samples=16))).note
