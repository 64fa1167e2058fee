"""What a model's code keeps outside the model is real after a capture, and the model is as it was."""

import functools

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
EXACT = quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest())


def cached():
    return functools.lru_cache(lambda size, device: torch.arange(size, dtype=torch.float32, device=device))


def in_a_table():
    table = {}

    def numbers(size, device):
        if size not in table:
            table[size] = torch.arange(size, dtype=torch.float32, device=device)
        return table[size]

    return numbers


def in_a_class():
    class Keeper:
        kept = None

    def numbers(size, device):
        if Keeper.kept is None:
            Keeper.kept = torch.arange(size, dtype=torch.float32, device=device)
        return Keeper.kept

    return numbers


class Adds(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        # A function that is an attribute would be copied with the model, and its closure would not be outside it.
        Adds.numbers = staticmethod(numbers)

    def forward(self, x):
        return self.fc(x) + Adds.numbers(6, x.device)


@pytest.mark.parametrize("keep", [cached, in_a_table, in_a_class])
def test_a_model_that_keeps_tensors_is_captured_and_runs_on(keep):
    model = Adds(keep()).eval()
    quantized = rw.quantize(model, X, EXACT)
    with torch.no_grad():
        outputs = model(X)
        assert type(outputs) is torch.Tensor
        torch.testing.assert_close(quantized(X), outputs, rtol=1e-3, atol=1e-3)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.fc(x)


class Renormalizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 6, max_norm=0.1)
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(self.table(x.argmax(1)))


@pytest.mark.parametrize("kind", [Counts, Renormalizes])
def test_a_model_that_writes_to_its_state_is_refused_and_stays_as_it_was(kind):
    model = kind().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with raises(rw.CaptureError, "state"):
        rw.quantize(model, X, EXACT)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_capture_runs_the_model_as_often_as_it_compares():
    class Calls(nn.Module):
        real = 0

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            Calls.real += type(x) is torch.Tensor and not torch.compiler.is_exporting()
            return self.fc(x.flatten(1))

    rw.capture(Calls().eval(), X)
    assert Calls.real == 3  # two samples, one sample, and samples of another size
