"""Which sizes a graph takes is found on inputs that show which places the model reads."""

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.frontends.sizes import resized

NUMBERS = torch.Generator().manual_seed(0)
INPUTS = {
    "numbers": torch.randn(2, 8, generator=NUMBERS),
    "half precision": torch.randn(2, 8, generator=NUMBERS).half(),
    "complex": torch.randn(2, 8, dtype=torch.complex64, generator=NUMBERS),
    "indices": torch.randint(0, 5, (2, 8), generator=NUMBERS),
    "indices of two values": torch.randint(0, 2, (2, 8), generator=NUMBERS, dtype=torch.uint8),
    "mask": torch.rand(2, 8, generator=NUMBERS) > 0.5,
    "mask, all true": torch.ones(2, 8, dtype=torch.bool),
    "mask, all false": torch.zeros(2, 8, dtype=torch.bool),
    "mask to add": torch.where(torch.rand(2, 8, generator=NUMBERS) > 0.5, 0.0, -torch.inf),
    "zeros": torch.zeros(2, 8),
    "ones": torch.ones(2, 8, dtype=torch.int64),
}


@pytest.mark.parametrize("size", [4, 12, 16, 24])
@pytest.mark.parametrize("name", INPUTS)
def test_new_places_hold_other_values(name, size):
    x = INPUTS[name]
    (other,) = resized([x], {(0, 1): size})
    assert other.dtype == x.dtype
    assert other.shape == (2, size)
    assert torch.equal(other[:, :8], x[:, :size])
    for place in range(8, size):
        assert (other[:, place] != x[:, place % 8]).all()
    assert torch.equal(other, resized([x], {(0, 1): size})[0])
    if name.startswith(("numbers", "indices", "half", "mask to add")):
        assert torch.isin(other, x).all()


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 3)

    def forward(self, x):
        return self.fc(x.narrow(1, -1, 1).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_the_last_step_is_not_taken_for_the_one_that_had_its_number(dtype):
    x = (10 * torch.rand(8, 8, generator=NUMBERS)).to(dtype)
    quantized = rw.quantize(Last().eval(), x, quantizing(rounding=rw.rounding.Nearest()))
    with raises(rw.ModelError, "'x'", 12):
        quantized(x.repeat(1, 2)[:, :12])


def test_a_graph_that_reads_every_place_takes_any_size():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    data = torch.randn(4, 3, 8, 8, generator=NUMBERS)
    quantized = rw.quantize(model, data, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    x = torch.randn(4, 3, 12, 12, generator=NUMBERS)
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)


class OwnCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return self.fc(x.movedim(1, 2)).movedim(1, 2)

    def __call__(self, x):
        return super().__call__(x) * (1 if x.shape[2] < 10 else 2)


class OwnImplementation(OwnCall):
    __call__ = nn.Module.__call__

    def _call_impl(self, x):
        return super()._call_impl(x) * (1 if x.shape[2] < 100 else 2)


@pytest.mark.parametrize("kind", [OwnCall, OwnImplementation])
def test_a_size_that_is_read_in_a_call_of_its_own_is_fixed(kind):
    model = kind().eval()
    x = torch.randn(8, 6, 4, generator=NUMBERS)
    quantized = rw.quantize(model, x, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), model(x), rtol=1e-3, atol=1e-3)
    with raises(rw.ModelError, "'x'", 5):
        quantized(torch.randn(8, 6, 5))


TABLE = torch.randn(8, 6, generator=NUMBERS)


def tries(y):
    try:
        return y + TABLE[:3]
    except RuntimeError:
        return 3 * y


DECISIONS = {
    "an error that is caught": tries,
    "is_same_size": lambda y: y * (3 if y[0].is_same_size(TABLE) else 1),
    "pieces of unsafe_split": lambda y: y * len(torch.unsafe_split(y, 3, 1)),
    "pieces of chunk": lambda y: y * len(y.chunk(5, 1)),
    "contiguous at one step": lambda y: y if y.transpose(1, 2).is_contiguous() else 2 * y,
}


class Decides(nn.Module):
    def __init__(self, decide):
        super().__init__()
        self.fc, self.decide = nn.Linear(6, 6), decide

    def forward(self, x):
        return self.decide(self.fc(x))


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_what_sizes_decide_without_being_read_is_computed_or_refused(decide):
    model = Decides(decide).eval()
    network = rw.quantize(model, torch.randn(8, 8, 6), quantizing(rw.Weights(16), rounding=rw.rounding.Nearest()))
    refused = 0
    for size in (8, 1, 2, 3, 4, 6, 12, 16):
        x = torch.randn(4, size, 6, generator=NUMBERS)
        try:
            result = network(x)
        except rw.ModelError:
            refused += 1
            continue
        torch.testing.assert_close(result, model(x), rtol=1e-3, atol=1e-3)
    assert 1 <= refused <= 7
