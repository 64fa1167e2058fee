"""A quantized network is called in every way in which its model is called, and in no other."""

import copy
import enum
import math
import pickle

import numpy as np
import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.artifacts.binding import same_constant

NEAREST = quantizing(rounding=rw.rounding.Nearest())
X, MASK = torch.randn(8, 6), torch.rand(8, 8)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x, mask=None, scale=1.0, *, both=False):
        h = torch.tanh(self.a(x))
        h = h if mask is None else h * mask
        y = self.b(h) * scale
        return (y, h) if both else y


CALLS = {
    "x": ((X,), {}),
    "x by name": ((), {"x": X}),
    "a default by position": ((X, None), {}),
    "a default by name": ((X,), {"mask": None}),
    "all defaults": ((X, None, 1.0), {"both": False}),
    "a mask": ((X, MASK), {}),
    "a mask by name": ((), {"mask": MASK, "x": X}),
    "a number": ((X, None, 2.0), {}),
    "a number by name": ((X,), {"scale": 2.0}),
    "a flag": ((X,), {"both": True}),
}
CAPTURED = {
    "x": (X, {"x", "x by name", "a default by position", "a default by name", "all defaults"}),
    "x by name": ({"x": X}, {"x", "x by name", "a default by position", "a default by name", "all defaults"}),
    "a mask": ([(X, MASK)], {"a mask", "a mask by name"}),
    "a mask by name": ({"x": X, "mask": MASK}, {"a mask", "a mask by name"}),
    "a number": ([(X, None, 2.0)], {"a number", "a number by name"}),
    "a flag": ({"both": True, "x": X}, {"a flag"}),
}


@pytest.fixture(scope="module", params=CAPTURED.values(), ids=CAPTURED)
def captured(request, tmp_path_factory):
    """A quantized network, the same after loading and after pickling, and the calls that it takes."""
    data, calls = request.param
    path = tmp_path_factory.mktemp("saved") / "model.rw"
    torch.manual_seed(0)
    model = Net().eval()
    quantized = rw.quantize(model, data, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    quantized.save(path)
    return model, (quantized, rw.load(path), pickle.loads(pickle.dumps(quantized))), calls  # noqa: S301  It was dumped here


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_means_what_was_captured_gives_what_the_model_gives(captured, name):
    model, networks, calls = captured
    args, kwargs = CALLS[name]
    for network in networks:
        if name in calls:
            with torch.no_grad():
                torch.testing.assert_close(network(*args, **kwargs), model(*args, **kwargs), rtol=1e-3, atol=1e-3)
        else:
            with raises(rw.ModelError, "quantized"):
                network(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "facts"),
    [
        ((X,), {"foo": 1}, ("'foo'",)),
        ((X, None, 1.0, False, 1), {}, (6,)),
        ((), {}, ("'x'",)),
        ((X,), {"x": X}, ("'x'",)),
    ],
)
def test_a_call_that_python_would_refuse_is_a_type_error(args, kwargs, facts):
    network = rw.quantize(Net().eval(), X, NEAREST)
    with raises(TypeError, *facts):
        network(*args, **kwargs)


@pytest.mark.parametrize("value", [X.numpy(), X.tolist(), None, 1.0, "x"], ids=lambda value: type(value).__name__)
def test_what_is_not_a_tensor_is_refused_by_name(value):
    network = rw.quantize(Net().eval(), [(X, MASK)], NEAREST)
    with raises(rw.ModelError, "'mask'", "float32 [samples, 8]"):
        network(X, value)


def test_a_flag_is_not_a_number():
    network = rw.quantize(Net().eval(), [(X, None, 2.0)], NEAREST)
    with raises(rw.ModelError, "'scale'", 2.0):
        network(X, None, torch.tensor(2.0))


CONSTANTS = [0, 0.0, -0.0, False, 1, 1.0, True, None, "", "1", 2.0, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("number", range(len(CONSTANTS)), ids=lambda number: repr(CONSTANTS[number]))
def test_constants_of_another_type_or_sign_are_others(number):
    one = CONSTANTS[number]
    again = pickle.loads(pickle.dumps(one))  # noqa: S301  It was dumped here
    same = [other for other, value in enumerate(CONSTANTS) if same_constant(value, again)]
    assert same == [number]
    extended = {float: np.float64, str: np.str_}.get(type(one))
    assert extended is None or same_constant(extended(one), one)


@pytest.mark.parametrize(("captured", "given"), [(1.0, 1), (1.0, True), (0.0, -0.0), (2, 2.0)])
@pytest.mark.parametrize("among_samples", [True, False])
def test_a_network_refuses_a_constant_of_another_type_or_sign(captured, given, among_samples):
    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x, scale=captured):
            return self.fc(x), torch.full((3,), scale)

    network = rw.quantize(Takes().eval(), [(X, captured)] if among_samples else X, NEAREST)
    network(X, captured)
    with raises(rw.ModelError, "'scale'", repr(captured), repr(given)):
        network(X, given)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


FACTOR = torch.ones(6)


class OfManyKinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x, color=Color.RED, dtype=torch.float32, part=slice(0, 2), factor=FACTOR, sizes=(1, 2)):
        return self.a(x)[:, part].to(dtype) * color.value * factor[part] * sizes[1]


GIVEN = {
    "color": (Color.RED, Color.BLUE),
    "dtype": (torch.float32, torch.float64),
    "part": (slice(0, 2), slice(0, 3)),
    "factor": (FACTOR, 2 * FACTOR),
    "sizes": ((1, 2), (1, 3)),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_default_of_any_kind_may_be_written_out_and_nothing_else_given(name):
    network = rw.quantize(OfManyKinds().eval(), X, NEAREST)
    same, other = GIVEN[name]
    assert torch.equal(network(X, **{name: same}), network(X))
    assert torch.equal(network(x=X, **{name: copy.deepcopy(same)}), network(X))
    with raises(rw.ModelError, f"'{name}'"):
        network(X, **{name: other})


@pytest.mark.parametrize("name", ["dtype", "sizes"])
def test_a_file_keeps_defaults_that_have_a_plain_form(name, tmp_path):
    network = rw.quantize(OfManyKinds().eval(), X, NEAREST)
    network.save(tmp_path / "network.rw")
    loaded = rw.load(tmp_path / "network.rw")
    same, other = GIVEN[name]
    assert torch.equal(loaded(X, **{name: same}), network(X))
    with raises(rw.ModelError, f"'{name}'"):
        loaded(X, **{name: other})
