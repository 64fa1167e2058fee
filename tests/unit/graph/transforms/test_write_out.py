"""In-place operations and the pure ones that they become: captured, and kept in a file."""

import pytest
import torch
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

PLACES = torch.tensor([0, 2])


def halves(y):
    return torch.full_like(y, 0.5)


def rows(y):
    return PLACES.expand(y.shape[0], 2)


IN_PLACE = {
    "zero_": lambda y: y.zero_(),
    "fill_": lambda y: y.fill_(1.5),
    "index_fill_": lambda y: y.index_fill_(1, PLACES, 2),
    "index_fill_, a tensor": lambda y: y.index_fill_(-1, PLACES, torch.tensor(2)),
    "index_copy_": lambda y: y.index_copy_(1, PLACES, halves(y)[:, :2]),
    "index_add_": lambda y: y.index_add_(1, torch.tensor([2, 2]), halves(y)[:, :2]),
    "index_add_, α": lambda y: y.index_add_(1, PLACES, halves(y)[:, :2], alpha=-3),
    "put_": lambda y: y.put_(PLACES, torch.tensor([1.0, 2.0])),
    "put_, accumulated": lambda y: y.put_(torch.tensor([[1], [1]]), torch.tensor([[1.0], [2.0]]), accumulate=True),
    "masked_scatter_": lambda y: y.masked_scatter_(y > 0, y.flip(1) * 3),
    "masked_scatter_, broadcast": lambda y: y.masked_scatter_(y[:, :1] > 0, y.flip(1) * 3),
    "masked_fill_": lambda y: y.masked_fill_(y > 0, 2.0),
    "scatter_": lambda y: y.scatter_(1, rows(y), 5.0),
    "scatter_, added": lambda y: y.scatter_(1, rows(y), 5.0, reduce="add"),
    "scatter_add_": lambda y: y.scatter_add_(1, rows(y), halves(y)[:, :2]),
    "scatter_reduce_": lambda y: y.scatter_reduce_(1, rows(y), halves(y)[:, :2], "amax"),
    "ldexp_": lambda y: y.ldexp_(torch.tensor(-2)),
    "addmv_": lambda y: y[:, 0].addmv_(y[:, 1:3] * 1, torch.tensor([1.0, 2.0]), beta=0.5, alpha=2.0),
    "addr_": lambda y: y.addr_(y[:, 0] * 1, torch.ones(3), beta=2.0),
    "addbmm_": lambda y: y.addbmm_(y[None].repeat(2, 1, 1), torch.ones(2, 3, 3), alpha=0.5),
    "cumprod_": lambda y: y.cumprod_(1),
    "cumsum_": lambda y: y.cumsum_(1),
    "rrelu_": lambda y: nn.functional.rrelu_(y),
    "a slice": lambda y: y.__setitem__((slice(None), 0), 0.0),
    "a mask": lambda y: y.__setitem__(y > 0, 1.0),
    "a list of places": lambda y: y.__setitem__((slice(None), PLACES), halves(y)[:, :2]),
    "negative_": lambda y: y.negative_(),
    "divide_": lambda y: y.divide_(halves(y), rounding_mode="floor"),
    "lerp_": lambda y: y.lerp_(halves(y), 0.3),
    "tril_": lambda y: y.tril_(),
}


class Changes(nn.Module):
    """A layer of which a part is changed in place."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Linear(4, 4), change

    def forward(self, x):
        y = self.layer(x) * 1
        self.change(y[:, :3])
        return y


@pytest.mark.parametrize("name", in_thirds(list(IN_PLACE)))
def test_a_change_in_place_is_captured_and_kept_in_a_file(name, tmp_path):
    x, model = torch.randn(8, 4), Changes(IN_PLACE[name]).eval()
    quantized = rw.quantize(model, x, quantizing(rw.Weights(16), rounding=rw.rounding.Nearest(), rewrites=()))
    quantized.save(tmp_path / "net.rw")
    loaded = rw.load(tmp_path / "net.rw")
    for samples in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(quantized(x[:samples]), model(x[:samples]), rtol=1e-3, atol=1e-3)
        assert torch.equal(loaded(x[:samples]), quantized(x[:samples]))


@pytest.mark.parametrize("inplace", [False, True])
def test_the_mean_slope_of_rrelu_is_its_slope_in_evaluation(inplace, tmp_path):
    x, model = torch.randn(8, 4), nn.Sequential(nn.Linear(4, 4), nn.RReLU(0.1, 0.5, inplace=inplace)).eval()
    quantized = rw.quantize(model, x, quantizing(rw.Weights(16), rounding=rw.rounding.Nearest()))
    quantized.save(tmp_path / "net.rw")
    with torch.no_grad():
        torch.testing.assert_close(rw.load(tmp_path / "net.rw")(x), model(x), rtol=1e-3, atol=1e-3)
