"""Capturing a model changes nothing in it, whatever its code does, and however the capture ends."""

import collections
import contextlib
import functools
import random
import types
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import roundwise as rw
from roundwise.frontends import TorchExport
from roundwise.frontends.double import Double

X = torch.randn(2, 3)


class Frozen(collections.OrderedDict):
    """A dict that cannot be changed, as configurations of diffusers are."""

    def __setitem__(self, name, value):
        if getattr(self, "frozen", False):
            raise TypeError("frozen")
        super().__setitem__(name, value)

    def update(self, *args, **kwargs):
        raise TypeError("frozen")


class Cache:
    """Keys and values of earlier calls, as decoders keep them."""

    __slots__ = ("entries", "tensor")

    def __init__(self):
        self.entries, self.tensor = [], torch.zeros(3)


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


class Model(nn.Module):
    """A model with attributes of every kind."""

    __slots__ = ("slot",)

    def __init__(self):
        super().__init__()
        self.fc, self.normalized = nn.Linear(3, 2), weight_norm(nn.Linear(2, 2))
        self.parts = nn.ModuleList([nn.Linear(2, 2), nn.Dropout()])
        nn.utils.parametrize.register_parametrization(self.parts[0], "weight", Doubled())
        self.fc.weight.grad = torch.ones(2, 3)
        self.fc.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))
        self.config = Frozen(width=3, sizes=[1, 2])
        self.config.frozen = True
        self.counts, self.recent = collections.defaultdict(int, a=1), collections.deque([1], maxlen=2)
        self.names, self.last, self.plain, self.nested = {"a"}, None, torch.zeros(3), {"deep": [{"x": torch.zeros(2)}]}
        self.cache, self.space, self.view = Cache(), types.SimpleNamespace(steps=0), types.MappingProxyType({"a": []})
        self.slot = [0]
        self.hidden, self.again, self.once = [self.fc], weakref.ref(self.fc), [weakref.proxy(self.fc)]
        self.act = functools.partial(self.activation, scale=1.0)
        seen = []
        self.seen = seen
        self.fc.register_forward_hook(lambda module, inputs, output: seen.append(len(seen)))
        self.table = functools.lru_cache(self.find)

    @property
    def width(self):
        return self.config["width"]

    def activation(self, x, scale):
        self.last = "activated"
        return x.relu() * scale

    def find(self, key):
        self.counts[key] += 1
        return key

    def forward(self, x):
        self.plain.add_(1)
        self.cache.tensor.add_(1)
        self.calls += 1
        return self.pure(x)

    def pure(self, x):
        x = self.parts[1](
            self.parts[0](self.normalized(self.act(self.again()(x) + self.hidden[0](x) + self.once[0](x))))
        )
        collections.OrderedDict.clear(self.config)
        self.counts["b"] += 1
        self.recent.append(2)
        self.names.add("b")
        self.nested["deep"][0]["y"] = 1
        self.cache.entries.append(1)
        self.cache.tensor = x
        self.space.steps += 1
        self.view["a"].append(1)
        self.slot.append(1)
        self.table(len(self.seen))
        self.training = True
        self.fc.weight.requires_grad_(False)
        self.fc.weight.grad = None
        self.fc._forward_hooks.clear()
        self.new = 1
        return x


def pure(model, x):
    return model.pure(x)


def writes(model, x):
    return model(x)


def writes_to_weights(model, x):
    with torch.no_grad():
        model.fc.weight.add_(1)
    return model.pure(x)


def decides(model, x):
    model.fc.weight.data.zero_()
    x = model.pure(x)
    return x if x.sum() > 0 else -x


def fails(model, x):
    model.pure(x)
    model.fc.weight.data.zero_()
    raise ZeroDivisionError


def interrupted(model, x):
    model.pure(x)
    raise KeyboardInterrupt


class Runs(nn.Module):
    """Runs the model by one of the functions above."""

    def __init__(self, function):
        super().__init__()
        self.model, self.function = Model(), function

    def forward(self, x):
        return self.function(self.model, x)


def content(value: Any, path: str = "", found: dict[str, Any] | None = None, seen: set[int] | None = None) -> dict:
    """Everything that can be reached from an object: by path, the object itself and what it holds."""
    found, seen = {} if found is None else found, set() if seen is None else seen
    if id(value) in seen or isinstance(value, type | types.ModuleType) or type(value) in weakref.ProxyTypes:
        return found
    seen.add(id(value))
    found[path] = (id(value), type(value))
    inside: dict[str, Any] = {}
    match value:
        case Tensor():
            found[path] += (value.detach().clone(), value._version, value.requires_grad, id(value.grad))
        case dict() | types.MappingProxyType():
            inside = {repr(key): item for key, item in value.items()}
        case list() | tuple() | set() | collections.deque():
            inside = {str(number): item for number, item in enumerate(value)}
        case types.MethodType():
            inside = {"self": value.__self__}
        case types.FunctionType():
            inside = {str(number): cell.cell_contents for number, cell in enumerate(value.__closure__ or ())}
        case functools.partial():
            inside = {"func": value.func, "args": value.args, "keywords": value.keywords}
        case _ if isinstance(value, functools._lru_cache_wrapper):
            found[path] += (value.cache_info(),)
        case bool() | int() | float() | str() | None:
            found[path] += (value,)
    if hasattr(value, "__dict__") and not isinstance(value, types.FunctionType | Tensor):
        inside |= vars(value)
    inside |= {name: getattr(value, name) for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())}
    for name, item in inside.items():
        content(item, f"{path}.{name}", found, seen)
    return found


def assert_same(now, before):
    assert now.keys() == before.keys()
    for path, facts in before.items():
        for one, other in zip(now[path], facts, strict=True):
            assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, path


OUTCOMES = {
    pure: None,
    writes: rw.CaptureError,
    writes_to_weights: rw.CaptureError,
    decides: rw.CaptureError,
    fails: rw.CalibrationError,
    interrupted: KeyboardInterrupt,
}


@pytest.mark.filterwarnings("ignore:the model is in training mode")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("function", OUTCOMES, ids=lambda function: function.__name__)
def test_capture_changes_nothing_in_the_model(function, training):
    model = Runs(function).train(training)
    before = content(model)
    expected = OUTCOMES[function]
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        TorchExport().graph(model, (X,), {})
    assert_same(content(model), before)


def test_a_double_computes_the_same_and_refers_to_nothing_of_the_model():
    model = Model().eval()
    double = Double(model).module
    with torch.no_grad():
        assert torch.equal(double.pure(X), Model.pure(Double(model).module, X))
    assert double.hidden[0] is double.fc is double.again()
    assert double.act.func.__self__ is double
    double.once[0].bias.requires_grad_(True)
    assert not model.fc.bias.requires_grad
    assert double.fc.weight.data_ptr() == model.fc.weight.data_ptr()
    assert not any(part.training for part in Double(model.train()).module.modules())
    assert model.training


def test_a_double_with_copies_shares_no_memory():
    model = Model()
    double = Double(model, copies_weights=True).module
    addresses = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert addresses.isdisjoint(tensor.data_ptr() for tensor in double.state_dict().values())


def test_a_forward_that_was_exchanged_runs_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    old = model[1].forward
    model[1].forward = lambda x: old(x) * 2
    with pytest.warns(UserWarning, match="training mode"):
        graph = TorchExport().graph(model, (X,), {})
    torch.testing.assert_close(graph.module()(X), model[0](X) * 2)


def test_a_model_that_was_built_in_inference_mode_is_quantized_as_it_is():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    images, stage = torch.randn(8, 3, 6, 6), rw.Quantize(rw.Weights(bits=16), rw.rounding.Nearest())
    for around in (torch.no_grad, torch.inference_mode):
        with around():
            torch.testing.assert_close(rw.quantize(model, images, stage)(images), model(images), rtol=1e-3, atol=1e-3)


GENERATORS = {
    "random": (lambda: random.Random(0), lambda it: it.random()),  # noqa: S311  not for secrets
    "numpy": (lambda: np.random.default_rng(0), lambda it: it.random()),
    "numpy, of old": (lambda: np.random.RandomState(0), lambda it: it.rand()),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_the_models_generators_stay_as_they_were(kind):
    make, draw = GENERATORS[kind]

    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.generator = nn.Linear(4, 4), make()

        def forward(self, x):
            return self.layer(x) * (1 + 0 * draw(self.generator))

    model = Draws().eval()
    rw.quantize(model, torch.randn(8, 4), rw.Quantize(rounding=rw.rounding.Nearest()))
    assert draw(model.generator) == draw(make())
