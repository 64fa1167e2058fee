"""Networks return what their models return, also from a file, in any container that a file can hold."""

import collections
import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw

NEAREST = quantizing(rounding=rw.rounding.Nearest())
X = torch.randn(8, 6)


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: Any = None


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    loss: Any = None


@dataclasses.dataclass
class Unnamed:
    logits: torch.Tensor


Both = collections.namedtuple("Both", "a b")


class Registered:
    """A class of one's own, which PyTorch can take apart, without names of its parts."""

    def __init__(self, *values):
        self.values = values


class Unknown:
    def __init__(self, value):
        self.value = value


class KeyValueCache(Unknown):
    pass


class Dict(dict):
    pass


pytree.register_pytree_node(
    Registered, lambda it: (list(it.values), None), lambda v, _: Registered(*v), serialized_type_name="test.Registered"
)
torch.export.register_dataclass(Result, serialized_type_name="test.Result")
torch.export.register_dataclass(Unnamed)


class Net(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.fc, self.result = nn.Linear(6, 4), result

    def forward(self, x):
        return self.result(self.fc(x))


RESULTS = {
    "a named tuple": lambda y: Pair(y, 2 * y),
    "a named tuple with a default": Pair,
    "a named tuple with tensors further inside": lambda y: Both(y, (y, y)),
    "a dataclass": Result,
    "a class of one's own": lambda y: Registered(y, y + 1),
    "values and indices": lambda y: y.max(-1),
    "the largest": lambda y: {"top": y.topk(2)},
    "a size": lambda y: (y, y.shape),
    "a queue": lambda y: collections.deque([y]),
    "numbers, flags, text and nothing": lambda y: (y, 3, 2.5, True, "s", None),
    "nested": lambda y: {"a": [y, (y, {"b": y})], "c": None},
    "an ordered dict": lambda y: collections.OrderedDict(b=y, a=y),
}


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
def test_a_loaded_network_returns_the_same_in_the_same_containers(result, tmp_path):
    network = rw.quantize(Net(result).eval(), X, NEAREST)
    network.save(tmp_path / "net.rw")
    before, after, model = network(X), rw.load(tmp_path / "net.rw")(X), Net(result)(X)
    assert type(before) is type(model)
    assert type(after).__name__ == type(model).__name__
    assert getattr(after, "_fields", None) == getattr(model, "_fields", None)
    for one, other in zip(pytree.tree_leaves(after), pytree.tree_leaves(before), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    ("result", "facts"),
    [
        (Unnamed, ("Unnamed", "serialized_type_name")),
        (lambda y: collections.defaultdict(list, a=y), ("defaultdict",)),
    ],
)
def test_a_container_that_no_file_can_name_is_refused(result, facts, tmp_path):
    network = rw.quantize(Net(result).eval(), X, NEAREST)
    with raises(rw.FileFormatError, *facts):
        network.save(tmp_path / "net.rw")


@pytest.mark.parametrize(
    ("result", "facts"),
    [
        (Unknown, ("Unknown", "register_pytree_node")),
        (lambda y: {"a": (y, Unknown(y))}, ("Unknown", "['a'][1]")),
        (lambda y: Dict(a=y), ("Dict", "dict(…)")),
        (lambda y: (y, {y}), ("set", "[1]")),
        (lambda y: (y, y.dtype), ("dtype", "[1]")),
        (lambda y: (y, KeyValueCache(y)), ("KeyValueCache", "[1]", "cache")),
        (dataclasses.make_dataclass("Unregistered", ["logits"]), ("Unregistered", "register_dataclass")),
    ],
)
def test_a_result_that_pytorch_cannot_take_apart_is_an_error_that_names_it(result, facts):
    with raises(rw.CaptureError, *facts):
        rw.quantize(Net(result).eval(), X, NEAREST)


KEYS = ["y", "", 3, 0.5, True, None, ("user", 1), (("a", 2), None), float("inf"), torch.float32]
NO_KEYS = [b"y", frozenset({1}), (1, b"y")]


class Keyed(nn.Module):
    """Returns a dict, and takes one, with a key of any kind."""

    def __init__(self, key):
        super().__init__()
        self.linear, self.key = nn.Linear(4, 4), key

    def forward(self, x):
        return {self.key: self.linear(x[self.key])}


@pytest.mark.parametrize("key", KEYS, ids=repr)
def test_a_file_keeps_keys_that_are_text_numbers_or_tuples(key, tmp_path):
    given = {key: torch.randn(8, 4)}
    network = rw.quantize(Keyed(key).eval(), [(given,)], rw.Quantize(rounding=rw.rounding.Nearest()))
    network.save(tmp_path / "network.rw")
    result = rw.load(tmp_path / "network.rw")(given)
    assert list(result) == [key]
    assert torch.equal(result[key], network(given)[key])


@pytest.mark.parametrize("key", NO_KEYS, ids=repr)
def test_saving_names_a_key_that_no_file_keeps(key, tmp_path):
    network = rw.quantize(Keyed(key).eval(), [({key: torch.randn(8, 4)},)], rw.Quantize(rounding=rw.rounding.Nearest()))
    with pytest.raises(rw.FileFormatError) as caught:
        network.save(tmp_path / "network.rw")
    assert repr(key) in str(caught.value)
