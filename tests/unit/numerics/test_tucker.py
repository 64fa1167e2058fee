"""Tucker-2 from moments, against HOOI as textbooks give it, and against minimizers of the error itself."""

import pytest
import torch

from roundwise.numerics.regression import Regression
from roundwise.numerics.tucker import Tucker2Problem

OUTPUTS, INPUTS, TAPS = 7, 6, 3


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(size, seed):
    root = drawn(size, 2 * size, seed=seed)
    return root @ root.T / size


def moments(seed=0):
    cols = INPUTS * TAPS
    second, weight = positive(cols, seed + 1), drawn(OUTPUTS, cols, seed=seed)
    cross = weight @ second + 0.3 * drawn(OUTPUTS, cols, seed=seed + 2)
    zeros = torch.zeros(cols).double()
    return Regression(second, cross, drawn(OUTPUTS).square() + 1e3, zeros, drawn(OUTPUTS), 1000)


def weighted(regression, metric, matrix):
    """tr S (M − M₀) H (M − M₀)ᵀ."""
    difference = matrix - regression.best()
    return (metric * (difference @ regression.second @ difference.T)).sum()


def white(weight):
    return Regression.white(weight, torch.zeros(OUTPUTS)), torch.eye(OUTPUTS).double()


def hooi(tensor, a, b, sweeps):
    """Higher-order orthogonal iteration on the modes of outputs and inputs, from singular values of the tensor."""
    inputs = torch.linalg.svd(tensor.transpose(0, 1).flatten(1))[0][:, :a]
    for _ in range(sweeps):
        outputs = torch.linalg.svd(torch.einsum("oct,ca->oat", tensor, inputs).flatten(1))[0][:, :b]
        inputs = torch.linalg.svd(torch.einsum("oct,ob->cbt", tensor, outputs).flatten(1))[0][:, :a]
    core = torch.einsum("oct,ob,ca->bat", tensor, outputs, inputs)
    return torch.einsum("bat,ob,ca->oct", core, outputs, inputs).flatten(1)


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (4, 2), (6, 7), (3, 7)])
def test_white_inputs_give_the_higher_order_orthogonal_iteration(ranks):
    weight = drawn(OUTPUTS, INPUTS * TAPS)
    found = Tucker2Problem(*white(weight), INPUTS).solve(ranks, 40).matrix
    wanted = hooi(weight.reshape(OUTPUTS, INPUTS, TAPS), *ranks, sweeps=60)
    error, best = (found - weight).square().sum(), (wanted - weight).square().sum()
    assert float(error) == pytest.approx(float(best), rel=1e-4, abs=1e-8)


def test_white_inputs_give_what_tensorly_gives():
    tensorly = pytest.importorskip("tensorly")
    decomposition = pytest.importorskip("tensorly.decomposition")
    weight = drawn(OUTPUTS, INPUTS * TAPS)
    (core, factors), _ = decomposition.partial_tucker(
        weight.reshape(OUTPUTS, INPUTS, TAPS).numpy(), rank=[3, 2], modes=[0, 1], n_iter_max=200, tol=1e-12
    )
    wanted = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    found = Tucker2Problem(*white(weight), INPUTS).solve((2, 3), 40).matrix
    error, best = (found - weight).square().sum(), ((wanted.reshape(OUTPUTS, -1) - weight.numpy()) ** 2).sum()
    assert float(error) == pytest.approx(float(best), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(2, 2), (2, 4), (4, 3)])
def test_dependent_inputs_give_nearly_the_smallest_error_that_descent_finds(ranks):
    regression, metric = moments(), positive(OUTPUTS, 5)
    problem, (a, b) = Tucker2Problem(regression, metric, INPUTS), ranks
    smallest = []
    for seed in range(4):
        cores = [drawn(*shape, seed=10 * seed + n) for n, shape in enumerate([(a, INPUTS), (b, a, TAPS), (OUTPUTS, b)])]
        cores = [core.requires_grad_() for core in cores]
        optimizer = torch.optim.LBFGS(cores, max_iter=600, line_search_fn="strong_wolfe", tolerance_change=1e-12)

        def closure(optimizer=optimizer, cores=cores):
            optimizer.zero_grad()
            matrix = torch.einsum("ob,bat,ac->oct", cores[2], cores[1], cores[0]).flatten(1)
            error = weighted(regression, metric, matrix)
            error.backward()
            return error

        optimizer.step(closure)
        smallest.append(float(closure().detach()))
    few, many = (float(weighted(regression, metric, problem.solve(ranks, rounds).matrix)) for rounds in (0, 30))
    (predicted,) = problem.errors([ranks])
    assert few == pytest.approx(predicted, rel=1e-5)
    assert many <= few
    assert many < 1.05 * min(smallest)


def test_more_rounds_never_raise_the_error():
    regression, metric = moments(3), positive(OUTPUTS, 6)
    problem = Tucker2Problem(regression, metric, INPUTS)
    errors = [float(weighted(regression, metric, problem.solve((3, 3), rounds).matrix)) for rounds in range(5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
