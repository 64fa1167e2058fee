"""Inputs in containers: a network takes what the samples held, whatever the order of keys."""

from collections import OrderedDict, namedtuple
from typing import NamedTuple

import torch
from facts import raises
from torch import Tensor, nn

import roundwise as rw


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, pair, both):
        return self.layer(pair["a"]) + 2 * pair["b"] + 3 * both[0] + 4 * both[1]


def test_a_dict_is_read_by_its_keys_and_what_is_put_together_otherwise_is_refused(tmp_path):
    model = Named().eval()
    a, b = torch.randn(8, 4), torch.randn(8, 4)
    made = rw.quantize(model, {"pair": {"a": a, "b": b}, "both": [a, b]}, rw.Quantize(rw.Weights(16)))
    made.save(tmp_path / "net.rw")
    for network in (made, rw.load(tmp_path / "net.rw")):
        for pair, both in (
            ({"b": b, "a": a}, [a, b]),
            (OrderedDict(b=b, a=a), [a, b]),
            ({"a": a, "b": b}, (a, b)),
        ):
            with torch.no_grad():
                torch.testing.assert_close(network(pair, both), model(pair, both), rtol=1e-3, atol=1e-3)
        for pair, both, facts in (
            ({"a": a, "b": b, "c": a}, [a, b], ("'pair'", "'c'")),
            ({"a": a}, [a, b], ("'pair'", "'b'")),
            ({"a": a, "b": b}, [a, b, a], ("'both'", 3, 2)),
            ({"a": a, "b": b}, [a], ("'both'", 1, 2)),
            ({"a": a, "b": b}, {0: a, 1: b}, ("'both'", 2)),
            ([a, b], [a, b], ("'pair'", "'a'")),
            (a, [a, b], ("'pair'", "'a'")),
            ({"b": b.double(), "a": a}, [a, b], ("float64",)),
        ):
            with raises(rw.ModelError, *facts):
                network(pair, both)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class OfPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, pair):
        return self.layer(pair.a) + pair.b


def test_a_loaded_network_takes_the_models_own_named_tuple(tmp_path):
    pair = Pair(torch.randn(8, 4), torch.randn(8, 4))
    made = rw.quantize(OfPair().eval(), [(pair,)], rw.Quantize(rw.Weights(16)))
    made.save(tmp_path / "net.rw")
    loaded = rw.load(tmp_path / "net.rw")
    assert torch.equal(loaded(pair), made(pair))
    other = namedtuple("Pair", "a c")
    with raises(rw.ModelError, "'pair'"):
        loaded(other(*pair))
