"""Recurrent layers of every kind are saved and loaded; weights that do not fit their state are refused."""

import pytest
import torch
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

X = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
KINDS = {
    "LSTM": nn.LSTM(6, 4, batch_first=True),
    "two layers, two directions": nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True),
    "projection": nn.LSTM(6, 4, batch_first=True, proj_size=3),
    "projection, two layers, two directions, no bias": nn.LSTM(
        6, 4, 2, batch_first=True, bidirectional=True, proj_size=3, bias=False
    ),
    "GRU": nn.GRU(6, 4, 2, batch_first=True),
    "RNN": nn.RNN(6, 4, batch_first=True, nonlinearity="relu"),
}


class Recurrent(nn.Module):
    def __init__(self, cells):
        super().__init__()
        self.first, self.cells = nn.Linear(6, 6), cells

    def forward(self, x):
        y, _ = self.cells(self.first(x))
        return y


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize("cells", in_thirds(KINDS))
def test_a_loaded_recurrent_network_computes_the_same(cells, tmp_path):
    network = rw.quantize(Recurrent(cells).eval(), X, quantizing(rounding=rw.rounding.Nearest()))
    network.save(tmp_path / "network.rw")
    assert torch.equal(rw.load(tmp_path / "network.rw")(X), network(X))
