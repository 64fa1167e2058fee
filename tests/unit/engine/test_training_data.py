"""Samples to calibrate on, to train on, and to hold out."""

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import roundwise as rw
from roundwise.engine.training_data import some_samples, training_data


def numbers(batches):
    """The numbers in all inputs of some batches."""
    leaves = (leaf for batch in batches for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor))
    return {int(number) for leaf in leaves for number in leaf.flatten()}


DATA = {
    "tensor": lambda x: x,
    "data set": lambda x: TensorDataset(x),
    "loader": lambda x: DataLoader(TensorDataset(x), batch_size=7),
}


@pytest.mark.parametrize("form", DATA.values(), ids=DATA)
@pytest.mark.parametrize("samples", [20, 3000])
@pytest.mark.parametrize("seed", [0, 5])
def test_samples_that_are_held_out_are_neither_trained_on_nor_calibrated_on(form, samples, seed):
    x = torch.arange(samples).float().reshape(-1, 1)
    signature = rw.capture(nn.Linear(1, 1).eval(), x).facts.signature
    data = training_data(form(x), signature, 16, seed)
    held_out = numbers(batch.args for batch in data.held_out_batches())
    trained = numbers(batch.args for batch in data.train_batches(0))
    calibrated = numbers([some_samples(form(x), 1024, seed)])
    assert held_out
    assert not held_out & trained
    assert not held_out & calibrated
    assert len(calibrated) == min(1024, samples - len(held_out))
