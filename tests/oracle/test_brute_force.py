"""Every rounding of a tiny layer is tried, and the solvers are held against the best of them."""

import math

import pytest

import roundwise as rw
from roundwise.statistics import Samples
from roundwise.testing import best_rounding, tiny_cases
from roundwise.testing.solver_checks import solve

CASES = tiny_cases()


def objective(case, grid, codes):
    """Eq. 25 without its regulariser, in float64 and by the operation itself: not by the oracle's own arithmetic."""
    weight = case.layer.to_weight(grid.dequantize(codes)).double()
    outputs = case.layer.as_items(case.layer.apply(weight, case.inputs.double()))
    targets = case.layer.as_items(case.targets.double())
    if case.nonlinearity is not None:
        outputs, targets = case.nonlinearity(outputs), case.nonlinearity(targets)
    return float((outputs - targets).square().sum(1).mean())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_optimum_is_no_worse_than_any_simple_rounding(case):
    problem = case.problem(Samples)
    best, value = best_rounding(case, problem.grid)
    assert math.isclose(objective(case, problem.grid, best.codes), value, rel_tol=1e-4, abs_tol=1e-9)
    for solver in (rw.rounding.Nearest(), rw.rounding.Floor(), rw.rounding.Ceil(), rw.rounding.Stochastic()):
        codes = solve(solver, problem).codes
        assert objective(case, problem.grid, codes) >= value * (1 - 1e-4) - 1e-9


@pytest.mark.slow
def test_adaround_comes_near_the_optimum():
    """It is a relaxation: on one of these layers it stops early, where λ outweighs what there is to gain."""
    left = lost = 0.0
    for case in CASES:
        problem = case.problem(Samples)
        _, optimum = best_rounding(case, problem.grid)
        nearest = objective(case, problem.grid, solve(rw.rounding.Nearest(), problem).codes)
        reached = objective(case, problem.grid, solve(rw.rounding.AdaRound(iterations=1500), problem).codes)
        assert optimum * (1 - 1e-4) <= reached <= nearest * (1 + 1e-4), case
        left += (reached - optimum) / optimum
        lost += (nearest - optimum) / optimum
    assert left <= 0.05 * lost
