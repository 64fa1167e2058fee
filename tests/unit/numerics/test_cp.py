"""CP from moments, against tensors whose components are known, and against descent on the error itself."""

import itertools

import pytest
import torch

from roundwise.numerics.cp import CPProblem
from roundwise.numerics.regression import Regression

OUTPUTS, INPUTS, KERNEL = 7, 6, (3, 2)
COLS = INPUTS * 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(size, seed):
    root = drawn(size, 2 * size, seed=seed)
    return root @ root.T / size


def moments(seed=0):
    second, weight = positive(COLS, seed + 1), drawn(OUTPUTS, COLS, seed=seed)
    cross = weight @ second + 0.3 * drawn(OUTPUTS, COLS, seed=seed + 2)
    return Regression(second, cross, drawn(OUTPUTS).square() + 1e3, torch.zeros(COLS).double(), drawn(OUTPUTS), 1000)


def weighted(regression, metric, matrix):
    """tr S (M − M₀) H (M − M₀)ᵀ."""
    difference = matrix - regression.best()
    return (metric * (difference @ regression.second @ difference.T)).sum()


def white(weight):
    return CPProblem(Regression.white(weight, torch.zeros(OUTPUTS)), torch.eye(OUTPUTS).double(), INPUTS, KERNEL)


def products(outputs, inputs, *kernels):
    return torch.einsum("or,rc,ri,rj->ocij", outputs, inputs, *kernels).flatten(1)


def test_a_sum_of_few_products_is_found_again():
    weight = products(drawn(OUTPUTS, 3), drawn(3, INPUTS, seed=1), drawn(3, 3, seed=2), drawn(3, 2, seed=3))
    problem = white(weight)
    found = problem.back(problem.solve(3, 0)).matrix
    assert float((found - weight).norm() / weight.norm()) < 1e-2


def test_white_inputs_give_what_tensorly_gives():
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight, rank = drawn(OUTPUTS, COLS), 8
    tensor = weight.reshape(OUTPUTS, INPUTS, *KERNEL).numpy()
    errors = []
    for seed in range(3):
        cp = decomposition.parafac(tensor, rank, n_iter_max=40, init="random", random_state=seed, tol=1e-12)
        errors.append(float(((tensorly.cp_to_tensor(cp) - tensor) ** 2).sum()))
    problem = white(weight)
    assert problem.error(problem.solve(rank, 0)) < 1.1 * max(errors)


def test_components_do_not_grow_without_bound_while_they_cancel_each_other():
    # A tensor of rank 3 that products of rank 2 come as near to as one likes, with factors that grow without bound.
    one, two = drawn(4, seed=1), drawn(4, seed=2)
    weight = sum(
        torch.einsum("o,c,i->oci", *vectors) for vectors in [(one, one, two), (one, two, one), (two, one, one)]
    )
    regression = Regression.white(weight.flatten(1), torch.zeros(4))
    problem = CPProblem(regression, torch.eye(4).double(), 4, (4,))
    found = problem.back(problem.solve(2, 0))
    assert problem.error(problem.solve(2, 0)) < 0.2 * float(weight.square().sum())
    largest = max(float(factor.abs().max()) for factor in (found.outputs, found.inputs, *found.kernels))
    assert largest < 20 * float(weight.abs().max())


def test_rounds_never_raise_the_error_and_the_error_is_that_of_the_matrix():
    regression, metric = moments(), positive(OUTPUTS, 5)
    problem = CPProblem(regression, metric, INPUTS, KERNEL)
    solved = [problem.solve(6, rounds) for rounds in range(5)]
    errors = [problem.error(one) for one in solved]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]
    for one, error in zip(solved, errors, strict=True):
        assert float(weighted(regression, metric, problem.back(one).matrix)) == pytest.approx(error, rel=1e-5)


@pytest.mark.slow
def test_dependent_inputs_give_nearly_the_smallest_error_that_descent_finds():
    regression, metric, rank = moments(), positive(OUTPUTS, 5), 5
    smallest = []
    for seed in range(4):
        shapes = (OUTPUTS, rank), (rank, INPUTS), (rank, 3), (rank, 2)
        factors = [drawn(*shape, seed=10 * seed + number).requires_grad_() for number, shape in enumerate(shapes)]
        optimizer = torch.optim.LBFGS(factors, max_iter=800, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure(optimizer=optimizer, factors=factors):
            optimizer.zero_grad()
            error = weighted(regression, metric, products(*factors))
            error.backward()
            return error

        optimizer.step(closure)
        smallest.append(float(closure().detach()))
    problem = CPProblem(regression, metric, INPUTS, KERNEL)
    assert problem.error(problem.solve(rank, 60)) < 1.15 * min(smallest)
