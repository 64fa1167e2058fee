"""Regression from second moments against least squares on the samples themselves."""

import pytest
import torch

from roundwise.numerics.moments import Moments, Pairs
from roundwise.numerics.regression import Regression, cholesky

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(400, 5, dtype=torch.float64, generator=GENERATOR) @ torch.diag(torch.arange(1.0, 6).double()) + 2
Y = (
    X @ torch.randn(5, 3, dtype=torch.float64, generator=GENERATOR)
    + torch.randn(400, 3, generator=GENERATOR).double()
    + 1
)


def regression():
    moments = Moments.zeros((1, 3, 5), torch.device("cpu"))
    moments.add(Pairs(X.float().unsqueeze(0), Y.float().unsqueeze(0)))
    return Regression.of(moments)


def test_the_best_map_and_bias_are_those_of_least_squares():
    found = regression()
    wanted = torch.linalg.lstsq(torch.cat([X, torch.ones(400, 1)], 1), Y).solution
    torch.testing.assert_close(found.best(), wanted[:5].T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias(found.best()), wanted[5], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shift", [None, 0.5])
def test_the_error_of_a_map_is_the_mean_squared_error_on_the_samples(shift):
    found, matrix = regression(), torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = None if shift is None else found.bias(matrix) + shift
    measured = (Y - X @ matrix.T - (found.bias(matrix) if bias is None else bias)).square().mean(0)
    torch.testing.assert_close(found.error(matrix, bias), measured, rtol=1e-4, atol=1e-3)


def test_the_loss_of_two_maps_differs_as_their_weighted_errors_on_the_samples():
    found, root = regression(), torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    metric = root @ root.T
    pairs = [(torch.full((3, 5), value, dtype=torch.float64), torch.full((3,), 1.0).double()) for value in (0.5, 1.0)]
    residuals = [Y - X @ matrix.T - bias for matrix, bias in pairs]
    measured = [torch.einsum("ni,ij,nj->n", r, metric, r).mean().item() for r in residuals]
    losses = [found.loss(matrix, bias, metric) for matrix, bias in pairs]
    assert losses[0] - losses[1] == pytest.approx(measured[0] - measured[1], rel=1e-4)


def test_white_inputs_make_the_error_that_of_the_weights():
    weight, other = torch.randn(3, 5).double(), torch.randn(3, 5).double()
    found = Regression.white(weight, torch.zeros(3))
    torch.testing.assert_close(found.best(), weight)
    torch.testing.assert_close(found.error(other), (weight - other).square().sum(1))


def test_shrinkage_without_end_gives_the_weights_back():
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(regression().shrunk(weight, 1e12).best(), weight, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(regression().shrunk(weight, 1e-6).best(), weight, atol=0.1)


def test_fewer_samples_are_shrunk_more():
    def strength(count):
        moments = Moments.zeros((1, 3, 5), torch.device("cpu"))
        moments.add(Pairs(X[:count].float().unsqueeze(0), Y[:count].float().unsqueeze(0)))
        return Regression.of(moments).shrinkage_strength(1.0)

    assert strength(8) > 3 * strength(400) > 0
    assert Regression.white(torch.randn(3, 5), torch.zeros(3)).shrinkage_strength(1.0) == 0


def test_a_singular_matrix_has_a_factor_too():
    one = torch.ones(4, 1, dtype=torch.float64)
    factor = cholesky(one @ one.T)
    torch.testing.assert_close(factor @ factor.T, one @ one.T, rtol=1e-6, atol=1e-6)
    assert cholesky(torch.zeros(2, 2, dtype=torch.float64)).isfinite().all()
