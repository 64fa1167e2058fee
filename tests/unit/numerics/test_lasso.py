"""The LASSO's path meets the conditions of a minimum, and agrees with brute force over supports and with descent."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundwise.numerics.lasso import lasso_path


def problem(seed, terms, *, samples=None, like=0, dead=0):
    """Moments of random terms, of which some may be nearly equal to others, and some zero."""
    generator = torch.Generator().manual_seed(seed)
    samples = samples or 3 * terms
    values = torch.randn(samples, terms, generator=generator, dtype=torch.float64)
    values[:, :like] = values[:, like : 2 * like]
    values[:, terms - dead :] = 0
    target = values.sum(1) + torch.randn(samples, generator=generator, dtype=torch.float64)
    return values.mT @ values / samples, values.mT @ target / samples


def objective(products, target, penalty, solution):
    quadratic = solution @ products @ solution / 2 - target @ solution
    return float(quadratic + penalty * solution.abs().sum())


def check_minimum(products, target, penalty, solution):
    """A minimum: c = λ sign(β) where β is not zero, and |c| is at most λ elsewhere."""
    correlation = target - products @ solution
    slack = 1e-6 * max(float(target.abs().max()), float(products.diagonal().mean() * solution.abs().max()))
    active = solution.abs() > 1e-9
    assert float((correlation - penalty * solution.sign())[active].abs().sum()) < slack * len(target)
    assert float(correlation.abs().max()) < penalty + slack


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([0, 1, 2]), st.sampled_from([0, 1]), st.booleans())
def test_every_point_of_the_path_is_a_minimum(seed, terms, like, dead, few):
    like, dead = min(like, terms // 2), min(dead, terms - 1)
    products, target = problem(seed, terms, samples=max(2, terms // 2) if few else None, like=like, dead=dead)
    path = list(lasso_path(products, target))
    assert path[-1].penalty == 0
    penalties = [point.penalty for point in path]
    assert penalties == sorted(penalties, reverse=True)
    for before, after in itertools.pairwise(path):
        check_minimum(products, target, after.penalty, after.solution)
        middle = (before.penalty + after.penalty) / 2, (before.solution + after.solution) / 2
        check_minimum(products, target, *middle)
        assert not (after.solution.abs() > 1e-9)[~before.active].any()
    if dead:
        assert not path[-1].solution[terms - dead :].any()


def test_solutions_are_those_of_brute_force_over_signs():
    products, target = problem(3, 5)
    for penalty in (0.05, 0.3, 0.8):
        point, nearest = next(
            (before, after)
            for before, after in itertools.pairwise(lasso_path(products, target))
            if before.penalty >= penalty >= after.penalty
        )
        share = (point.penalty - penalty) / (point.penalty - nearest.penalty)
        found = torch.lerp(point.solution, nearest.solution, share)
        best = 0.0  # of β = 0
        for signs in itertools.product([-1.0, 0.0, 1.0], repeat=5):
            chosen = torch.tensor(signs).nonzero().flatten()
            if len(chosen):
                right = target[chosen] - penalty * torch.tensor(signs, dtype=torch.float64)[chosen]
                solution = torch.zeros(5, dtype=torch.float64)
                solution[chosen] = torch.linalg.solve(products[chosen][:, chosen], right)
                best = min(best, objective(products, target, penalty, solution))
        assert objective(products, target, penalty, found) == pytest.approx(best, abs=1e-9)


def test_of_terms_that_are_equal_one_comes_in():
    products = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    path = list(lasso_path(products, torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64)))
    assert [int(point.active.sum()) for point in path] == [1, 2, 2]
    assert sorted(path[-1].solution[:2].tolist()) == [0.0, pytest.approx(2.0)]
    assert path[-1].solution[2] == pytest.approx(1.0)


def test_a_path_can_end_early():
    products, target = problem(1, 12)
    whole, part = list(lasso_path(products, target)), list(lasso_path(products, target, most=4))
    assert len(part) < len(whole)
    assert int(part[-1].active.sum()) == 5
    assert all(torch.equal(one.solution, other.solution) for one, other in zip(part, whole, strict=False))


def test_without_terms_that_vary_the_path_is_empty():
    assert list(lasso_path(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))) == []
