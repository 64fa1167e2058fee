"""Backward elimination removes, step by step, what brute force says costs least."""

import pytest
import torch

from roundwise.numerics.channel_selection import OTHERS, Reader
from roundwise.numerics.elimination import eliminated
from roundwise.numerics.moments import Moments, Pairs
from roundwise.numerics.regression import Regression


def reader(owner, seed, rows=3, inputs=None):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.tensor(owner)
    if inputs is None:
        mixing = torch.randn(len(owner), len(owner), generator=generator)
        inputs = torch.randn(300, len(owner), generator=generator) @ mixing
    weight = torch.randn(rows, len(owner), generator=generator)
    moments = Moments.zeros((1, rows, len(owner)), torch.device("cpu"))
    moments.add(Pairs(inputs.unsqueeze(0), (inputs @ weight.mT).unsqueeze(0)))
    half = torch.randn(rows, rows, generator=generator).double()
    return Reader(weight.double(), Regression.of(moments), half.mT @ half + 0.1 * torch.eye(rows).double(), owner)


@pytest.mark.parametrize("owner", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [2, OTHERS, 0, 0, 1, 4, 3, 2]])
def test_each_step_removes_the_channel_that_costs_least(owner):
    readers = [reader(owner, 0), reader([4, 3, 2, 1, 0], 1)]
    left = list(range(5))
    for channel in eliminated(readers, 5, 1):
        errors = {}
        for other in left:
            kept = torch.tensor([one for one in left if one != other])
            errors[other] = -sum(one.explained(one.columns(kept)) for one in readers)
        assert errors[channel] == pytest.approx(min(errors.values()), rel=1e-6)
        left.remove(channel)
    assert len(left) == 1


def test_copies_of_other_channels_go_first():
    inputs = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    one = reader([0, 1, 2, 3, 4, 5], 3, inputs=torch.cat([inputs, inputs[:, [1, 0, 2]] * 2], 1))
    gone = eliminated([one], 6, 3)
    assert {channel % 3 if channel < 3 else [1, 0, 2][channel - 3] for channel in set(range(6)) - set(gone)} == {
        0,
        1,
        2,
    }
