"""Errors of sets of channels and the LASSO's moments, compared with the samples themselves."""

import pytest
import torch

from roundwise.numerics.channel_selection import OTHERS, Reader
from roundwise.numerics.moments import Moments, Pairs
from roundwise.numerics.regression import Regression

CHANNELS, ROWS = 4, 3
OWNER = torch.tensor([2, OTHERS, 0, 0, 1, 2, 3, OTHERS, 3, 1])


@pytest.fixture
def samples():
    """Inputs, targets, weights and a metric; and the reader that has their moments."""
    torch.manual_seed(0)
    inputs = torch.randn(200, len(OWNER)) @ torch.randn(len(OWNER), len(OWNER)) + 1
    weight = torch.randn(ROWS, len(OWNER))
    targets = inputs @ weight.mT + 0.5 * torch.randn(200, ROWS) - 2
    half = torch.randn(ROWS, ROWS, dtype=torch.float64)
    moments = Moments.zeros((1, ROWS, len(OWNER)), torch.device("cpu"))
    moments.add(Pairs(inputs.unsqueeze(0), targets.unsqueeze(0)))
    reader = Reader(weight.double(), Regression.of(moments), half.mT @ half, OWNER)
    centred = (inputs - inputs.mean(0)).double(), (targets - targets.mean(0)).double()
    return *centred, reader


def test_the_quadratic_of_the_lasso_is_the_error_with_channels_multiplied_by_numbers(samples):
    inputs, targets, reader = samples
    products, target = reader.lasso(CHANNELS)
    torch.testing.assert_close(products, products.mT)

    def error(numbers):
        factors = torch.where(OWNER == OTHERS, 1.0, numbers[OWNER.clamp(min=0)])
        difference = targets - (inputs * factors) @ reader.weight.mT
        return float(((difference @ reader.metric) * difference).sum(1).mean())

    start = error(torch.zeros(CHANNELS, dtype=torch.float64))
    for seed in range(5):
        numbers = torch.randn(CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        quadratic = float(numbers @ products @ numbers - 2 * target @ numbers)
        assert error(numbers) - start == pytest.approx(quadratic, rel=1e-4)


def test_what_channels_explain_is_what_regression_on_their_columns_explains(samples):
    inputs, targets, reader = samples
    for kept in ([0, 3], [1], [], [0, 1, 2, 3]):
        columns = reader.columns(torch.tensor(kept, dtype=torch.int64))
        assert columns.tolist() == [place for place, owner in enumerate(OWNER.tolist()) if owner in {*kept, OTHERS}]
        rest = targets - inputs[:, columns] @ torch.linalg.lstsq(inputs[:, columns], targets).solution
        energies = [float(((one @ reader.metric) * one).sum(1).mean()) for one in (targets, rest)]
        assert reader.explained(columns) == pytest.approx(energies[0] - energies[1], rel=1e-4)
    assert reader.explained() == reader.explained(torch.arange(len(OWNER)))


def test_energies_are_of_the_weights_that_read_a_channel(samples):
    reader = samples[-1]
    for channel, energy in enumerate(reader.energies(CHANNELS).tolist()):
        weights = reader.weight[:, channel == OWNER]
        assert energy == pytest.approx(float((weights.mT @ reader.metric @ weights).trace()))
