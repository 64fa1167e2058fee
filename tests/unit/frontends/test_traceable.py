"""Calls that PyTorch's tracer cannot follow are captured all the same, or refused in words that say what to do."""

import enum

import pytest
import torch
from facts import has, raises
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
EXACT = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest(), rewrites=())


class Way(nn.Module):
    """A linear layer, a buffer, and a way to use them."""

    def __init__(self, way):
        super().__init__()
        self.linear, self.way = nn.Linear(6, 6), way
        self.register_buffer("factor", torch.linspace(1, 2, 6))

    def forward(self, x):
        return self.way(self, x)


def data_in_place(model, x):
    h = model.linear(x)
    h.data.mul_(3)
    return h


def pieces_in_place(model, x):
    h = model.linear(x)
    one, other = h.chunk(2, 1)
    one.mul_(2)
    other += one
    return h


def given_place(model, x):
    h = model.linear(x)
    torch.add(h, 1, out=h)
    return h


def places(x):
    return x.abs().mul(2).long().clamp(0, 5)


WAYS = {
    "data of a value, in place": data_in_place,
    "data of an input": lambda model, x: model.linear(x.data),
    "data of a buffer": lambda model, x: model.linear(x) * model.factor.data,
    "data of a weight": lambda model, x: nn.functional.linear(x, model.linear.weight.data, model.linear.bias.data),
    "take_along_dim": lambda model, x: torch.take_along_dim(model.linear(x), places(x), 1),
    "take_along_dim, last": lambda model, x: model.linear(x).take_along_dim(places(x), dim=-1),
    "multi_dot": lambda model, x: torch.linalg.multi_dot([x, model.linear.weight, model.linear.weight.T]),
    "pieces in place": pieces_in_place,
    "out=": given_place,
}


@pytest.mark.parametrize("way", in_thirds(WAYS))
def test_such_calls_are_captured(way):
    model = Way(way).eval()
    network = rw.quantize(model, X, EXACT)
    with torch.no_grad():
        for samples in (8, 1, 5):
            torch.testing.assert_close(network(X[:samples]), model(X[:samples].clone()), rtol=1e-3, atol=1e-3)


class Mode(enum.Enum):
    FAST = 1


class WithMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x, mode=Mode.FAST, dtype=torch.float32):
        return self.linear(x).to(dtype) * mode.value


@pytest.mark.parametrize(("name", "value"), [("mode", Mode.FAST), ("dtype", torch.float64)])
def test_inputs_that_no_graph_takes_are_named(name, value):
    with raises(rw.CaptureError, name, repr(value)):
        rw.quantize(WithMode().eval(), {"x": X, name: value}, EXACT)


class Torch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, torch):
        return self.linear(torch)


def test_a_parameter_with_the_name_of_what_a_graph_reads_is_refused():
    with raises(rw.CaptureError, "'torch'"):
        rw.quantize(Torch().eval(), X, EXACT)


def test_a_generator_of_the_models_own_is_named():
    model = Way(lambda model, x: model.linear(x) + torch.rand(6, generator=torch.Generator().manual_seed(0)))
    with raises(rw.CaptureError, "generator", "buffer"):
        rw.quantize(model.eval(), X, EXACT)


def test_nan_among_the_results_is_named():
    with raises(rw.CaptureError, "['n']", "nan"):
        rw.quantize(Way(lambda model, x: {"y": model.linear(x), "n": float("nan")}).eval(), X, EXACT)


class Compiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        y = self.linear(x)
        if x.shape[1] > 5:
            y = y * 2
        return y


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
def test_the_way_out_of_compiled_code_that_reads_a_shape_works():
    compiled = torch.jit.script(Compiled().eval())
    with raises(rw.CaptureError, "TorchScript", "load_state_dict"):
        rw.quantize(compiled, X, EXACT)
    model = Compiled().eval()
    model.load_state_dict(compiled.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rw.quantize(model, X, EXACT)(X[:3]), compiled(X[:3]), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_that_pytorch_quantized_are_named():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    with pytest.raises(rw.ModelError) as caught:
        rw.quantize(quantized, X, EXACT)
    assert has(str(caught.value), "'0'", "float model")
