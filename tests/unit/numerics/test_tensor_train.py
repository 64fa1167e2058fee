"""Tensor trains from moments, against the sequential decomposition and against descent on the error itself."""

import itertools

import pytest
import torch

from roundwise.numerics.regression import Regression
from roundwise.numerics.tensor_train import TensorTrainProblem

OUTPUTS, INPUTS, TAPS = 7, 5, (3, 2)
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


def sequential(tensor, ranks):
    """TT-SVD: cut one dimension after the other off by a singular value decomposition."""
    cores, rest, before = [], tensor, 1
    for rank, size in zip((*ranks, None), tensor.shape, strict=True):
        if rank is None:
            cores.append(rest.reshape(before, size))
            break
        left, values, right = torch.linalg.svd(rest.reshape(before * size, -1), full_matrices=False)
        cores.append(left[:, :rank].reshape(before, size, rank))
        rest, before = values[:rank, None] * right[:rank], rank
    return torch.einsum("xca,aib,bjd,do->ocij", *cores).flatten(1)


@pytest.mark.parametrize("ranks", [(2, 3, 2), (4, 6, 4), (5, 8, 5), (3, 9, 7)])
def test_white_inputs_give_no_more_error_than_the_sequential_decomposition(ranks):
    weight = drawn(OUTPUTS, COLS)
    problem = TensorTrainProblem(
        Regression.white(weight, torch.zeros(OUTPUTS)), torch.eye(OUTPUTS).double(), INPUTS, TAPS
    )
    train = sequential(weight.reshape(OUTPUTS, INPUTS, *TAPS).permute(1, 2, 3, 0), ranks)
    errors = [float((matrix - weight).square().sum()) for matrix in (problem.solve(ranks, 10).matrix, train)]
    assert errors[0] <= errors[1] * (1 + 1e-9) + 1e-9
    # The bound of Oseledets: the dropped singular values of the three unfoldings.
    tensor, dropped = weight.reshape(OUTPUTS, INPUTS, *TAPS), 0.0
    unfoldings = ((1, 0, 2, 3), INPUTS), ((1, 2, 0, 3), INPUTS * TAPS[0]), ((0, 1, 2, 3), OUTPUTS)
    for rank, (order, rows) in zip(ranks, unfoldings, strict=True):
        values = torch.linalg.svdvals(tensor.permute(order).reshape(rows, -1))
        dropped += float(values[rank:].square().sum())
    assert problem.errors([ranks])[0] <= dropped * (1 + 1e-9) + 1e-9


def test_full_ranks_give_the_best_map():
    regression, metric = moments(), positive(OUTPUTS, 5)
    found = TensorTrainProblem(regression, metric, INPUTS, TAPS).solve((5, 14, 7), 0).matrix
    torch.testing.assert_close(found, regression.best(), rtol=1e-5, atol=1e-5)


def test_predictions_are_the_errors_of_the_start_and_rounds_never_raise_them():
    regression, metric = moments(3), positive(OUTPUTS, 6)
    problem = TensorTrainProblem(regression, metric, INPUTS, TAPS)
    sizes = [(2, 2, 2), (3, 6, 4), (5, 6, 3), (4, 9, 7)]
    for size, predicted in zip(sizes, problem.errors(sizes), strict=True):
        errors = [float(weighted(regression, metric, problem.solve(size, rounds).matrix)) for rounds in range(4)]
        assert errors[0] == pytest.approx(predicted, rel=1e-5)
        assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(errors))
        assert errors[-1] < errors[0]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 3, 3), (4, 4, 3)])
def test_dependent_inputs_give_nearly_the_smallest_error_that_descent_finds(ranks):
    regression, metric, (a, b, d) = moments(), positive(OUTPUTS, 5), ranks
    shapes, smallest = [(a, INPUTS), (b, a, 3), (d, b, 2), (OUTPUTS, d)], []
    for seed in range(4):
        cores = [drawn(*shape, seed=10 * seed + number).requires_grad_() for number, shape in enumerate(shapes)]
        optimizer = torch.optim.LBFGS(cores, max_iter=800, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure(optimizer=optimizer, cores=cores):
            optimizer.zero_grad()
            matrix = torch.einsum("ac,bai,dbj,od->ocij", *cores).flatten(1)
            error = weighted(regression, metric, matrix)
            error.backward()
            return error

        optimizer.step(closure)
        smallest.append(float(closure().detach()))
    found = TensorTrainProblem(regression, metric, INPUTS, TAPS).solve(ranks, 60).matrix
    assert float(weighted(regression, metric, found)) < 1.05 * min(smallest)
