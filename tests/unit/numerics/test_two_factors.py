"""Two factors of a layer from its moments, against singular value decompositions and brute force."""

import itertools

import pytest
import torch

from roundwise.numerics.regression import Regression
from roundwise.numerics.two_factors import Factors, TwoFactors

SHAPES = [(4, (3, 2)), (6, (3, 1)), (6, (1, 3)), (5, (1, 1))]
OUTPUTS = 7


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(size, seed):
    root = drawn(size, 2 * size, seed=seed)
    return root @ root.T / size


def noisy(inputs, taps, seed=0):
    """A regression whose best map is not all there is to the targets."""
    cols = inputs * taps[0] * taps[1]
    second, weight = positive(cols, seed + 1), drawn(OUTPUTS, cols, seed=seed)
    cross = weight @ second + 0.3 * drawn(OUTPUTS, cols, seed=seed + 2)
    return Regression(second, cross, drawn(OUTPUTS).square() + 1e3, torch.zeros(cols).double(), drawn(OUTPUTS), 1000)


def weighted(regression, metric, matrix):
    """tr S (M − M₀) H (M − M₀)ᵀ."""
    difference = matrix - regression.best()
    return float((metric * (difference @ regression.second @ difference.T)).sum())


@pytest.mark.parametrize(("inputs", "taps"), SHAPES)
def test_factors_of_full_rank_make_up_the_best_map(inputs, taps):
    regression, metric = noisy(inputs, taps), positive(OUTPUTS, 5)
    problem = TwoFactors(regression, metric, inputs, taps)
    torch.testing.assert_close(problem.solve(problem.largest, 0).matrix, regression.best(), rtol=1e-5, atol=1e-5)
    assert float(problem.errors()[-1]) == pytest.approx(0, abs=1e-4 * float(problem.errors()[0]))


@pytest.mark.parametrize(("inputs", "taps"), SHAPES)
def test_white_inputs_give_the_singular_value_decomposition_of_the_weights(inputs, taps):
    weight = drawn(OUTPUTS, inputs * taps[0] * taps[1])
    problem = TwoFactors(Regression.white(weight, torch.zeros(OUTPUTS)), torch.eye(OUTPUTS).double(), inputs, taps)
    folded = weight.reshape(OUTPUTS, inputs, *taps).permute(0, 3, 1, 2).reshape(OUTPUTS * taps[1], inputs * taps[0])
    dropped = torch.linalg.svdvals(folded).square().flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(problem.errors()[: len(dropped)], dropped, rtol=1e-6, atol=1e-6)
    for rank in (1, 3):
        error = (problem.solve(rank, 3).matrix - weight).square().sum()
        assert float(error) == pytest.approx(float(dropped[rank]), rel=1e-6)


@pytest.mark.parametrize(("inputs", "taps"), SHAPES)
def test_the_errors_of_all_ranks_are_those_of_the_factors_of_each(inputs, taps):
    regression, metric = noisy(inputs, taps), positive(OUTPUTS, 5)
    problem = TwoFactors(regression, metric, inputs, taps)
    errors = problem.errors()
    assert all(before >= after - 1e-9 for before, after in itertools.pairwise(errors))
    for rank in range(1, problem.largest):
        assert float(errors[rank]) == pytest.approx(
            weighted(regression, metric, problem.solve(rank, 0).matrix), rel=1e-3
        )


def test_one_kernel_less_is_reduced_rank_regression():
    # The closed form: the leading eigenvectors U of L G H⁻¹ Gᵀ Lᵀ give M = L⁻¹ U Uᵀ L M₀.
    regression, metric = noisy(5, (3, 1)), positive(OUTPUTS, 5)
    values, vectors = torch.linalg.eigh(metric)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    best = regression.best()
    _, basis = torch.linalg.eigh(root @ best @ regression.cross.T @ root)
    leading = basis[:, -2:]
    wanted = torch.linalg.inv(root) @ leading @ leading.T @ root @ best
    found = TwoFactors(regression, metric, 5, (3, 1)).solve(2, 0).matrix
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("taps", [(3, 2), (1, 3)])
def test_more_rounds_never_raise_the_error_and_reach_what_gradient_descent_reaches(taps):
    regression, metric = noisy(4, taps), positive(OUTPUTS, 5)
    problem = TwoFactors(regression, metric, 4, taps)
    errors = [weighted(regression, metric, problem.solve(2, rounds).matrix) for rounds in (0, 1, 3, 10, 60)]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[2] < errors[0]
    start = problem.solve(2, 0)
    parts = [start.first.clone().requires_grad_(), start.second.clone().requires_grad_()]
    optimizer = torch.optim.LBFGS(parts, max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        difference = Factors(*parts).matrix - regression.best()
        loss = (metric * (difference @ regression.second @ difference.T)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    reached = weighted(regression, metric, Factors(*parts).matrix.detach())
    assert errors[-1] <= reached * 1.02


def test_balanced_factors_have_the_same_product_and_equal_norms():
    factors = Factors(drawn(3, 4, 2) * 100, drawn(5, 3, 2, seed=1))
    balanced = factors.balanced()
    torch.testing.assert_close(balanced.matrix, factors.matrix)
    norms = balanced.first.flatten(1).norm(dim=1), balanced.second.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(*norms)
    dead = Factors(torch.zeros(1, 2, 1).double(), drawn(2, 1, 1)).balanced()
    assert dead.matrix.isfinite().all()
