"""Notes of a run on its samples."""

import pytest
import torch
from torch import nn

import roundwise as rw

NEAREST = rw.Quantize(rounding=rw.rounding.Nearest())


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x, y):
        return self.layer(x) + y


def notes(data, model=None, **settings):
    recipe = rw.Recipe((NEAREST,), **settings)
    return rw.quantize((model or nn.Linear(8, 4)).eval(), data, recipe).report.notes


@pytest.mark.parametrize("samples", [torch.zeros(40, 8), torch.arange(8.0).expand(40, 8)])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_samples_that_are_all_alike_are_noted(samples, batch_size):
    (note,) = notes(samples, batch_size=batch_size)
    assert "40" in note


def test_one_sample_and_samples_that_differ_in_one_number_or_one_input_are_not():
    samples = torch.zeros(40, 8)
    assert notes(samples[:1]) == ()
    samples[39, 7] = 1
    assert notes(samples, batch_size=7) == ()
    assert notes((torch.zeros(40, 8), torch.arange(40.0)[:, None]), Two()) == ()
