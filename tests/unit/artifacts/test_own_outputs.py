"""What a caller does to the outputs of a call changes no later call."""

import pytest
import torch
from recipes import quantizing
from torch import nn

import roundwise as rw

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
EXACT = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest(), rewrites=())
GIVEN = {
    "a layer with a constant input": lambda model: model.other(model.table),
    "a buffer": lambda model: model.table,
    "a view of a buffer": lambda model: model.table.view(-1)[2:],
    "a weight": lambda model: model.other.weight.T,
    "one of several views": lambda model: model.table.chunk(2, 1)[1],
}


class Gives(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.linear, self.other, self.given = nn.Linear(6, 6), nn.Linear(6, 6), given
        self.register_buffer("table", torch.randn(2, 6))

    def forward(self, x):
        return self.linear(x), self.given(self)


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_an_output_can_be_overwritten(given, loaded, tmp_path):
    network = rw.quantize(Gives(given).eval(), X, EXACT)
    if loaded:
        network.save(tmp_path / "network.rw")
        network = rw.load(tmp_path / "network.rw")
    before = network(X)[1].clone()
    network(X)[1].add_(5)
    assert torch.equal(network(X)[1], before)
