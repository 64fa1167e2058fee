"""A quantized network gives the same numbers for the same inputs, however they lie in memory."""

import inspect
import sys
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
from recipes import quantizing
from thirds import in_thirds
from torch import Tensor, nn

import roundwise as rw

sys.path.append(str(Path(__file__).parents[1] / "integration"))

from zoo import CASES

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
PRECISE = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest())


def channels_last(x):
    return x.contiguous(memory_format=FORMATS[x.dim()]) if x.dim() in FORMATS else x


def permuted(x):
    """The last dimension has the largest stride, as in Fortran."""
    order = list(range(x.dim()))[::-1]
    return x.permute(order).contiguous().permute(order)


def sliced(x):
    """Every second number of a larger tensor, with an offset."""
    large = x.new_zeros([2 * size + 1 for size in x.shape])
    part = large[tuple(slice(1, 2 * size + 1, 2) for size in x.shape)]
    part.copy_(x)
    return part


def expanded(x):
    """One sample for all, with a stride of 0."""
    return x[:1].expand(x.shape)


LAYOUTS = {layout.__name__: layout for layout in (channels_last, permuted, sliced, expanded)}


def laid_out(layout, inputs):
    return pytree.tree_map_only(Tensor, lambda x: layout(x) if x.dim() else x, inputs)


def outputs(network, inputs):
    args, kwargs = inputs
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(network(*args, **kwargs)) if isinstance(leaf, Tensor)]


def check(network, inputs):
    for name, layout in LAYOUTS.items():
        given = laid_out(layout, inputs)
        plain = pytree.tree_map_only(Tensor, lambda x: x.clone(memory_format=torch.contiguous_format), given)
        for one, other in zip(outputs(network, given), outputs(network, plain), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


class Reads(nn.Module):
    """Convolutions around operations that read memory in its order."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.way = nn.Conv2d(3, 4, 3, padding=1), nn.LazyConv2d(5, 1), way

    def forward(self, x):
        return self.b(self.way(torch.tanh(self.a(x))))


def corners(y):
    n, c, h, w = y.shape
    return torch.as_strided(y.contiguous(), (n, c, h // 2, w // 2), (c * h * w, h * w, 2 * w, 2))


def part(y):
    y = y.contiguous()
    n, c, h, w = y.shape
    return torch.as_strided(y[:, 1:, 2:], (n, c - 1, 2, 2), (c * h * w, h * w, w, 1))


def part_with_offset(y):
    y = y.contiguous()
    n, c, h, w = y.shape
    return torch.as_strided(y[:, :, 1:], (n, c, 2, 2), (c * h * w, h * w, w, 1), 3)


def last_dimension(y):
    y = y.contiguous(memory_format=torch.channels_last)
    n, c, h, w = y.shape
    return torch.as_strided(y, (n, 2, h, w), (c * h * w, 2, w * c, c))


def as_complex(y):
    pairs = torch.view_as_complex(y.reshape(*y.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(3), torch.arange(3.0))).flatten(-2)


def as_bits(y):
    return y.contiguous().view(torch.int32).float() * 1e-9


def views(y):
    return y.contiguous().view(y.shape[0], 2, -1).reshape(y.shape[0], -1).view_as(y.flatten(1)).view(-1, 4, 6, 6)


def norms(y):
    y = nn.functional.instance_norm(nn.functional.group_norm(y, 2))
    return nn.functional.layer_norm(y, (6,)) + y.permute(0, 2, 3, 1).flatten(1, 2).mT.unflatten(2, (6, 6))


READERS = [corners, part, part_with_offset, last_dimension, as_complex, as_bits, views, norms]


def made(way):
    torch.manual_seed(0)
    model, x = Reads(way).eval(), torch.randn(24, 3, 6, 6)
    model(x)
    return model, x


@pytest.mark.parametrize("way", in_thirds(READERS, start=1))
def test_operations_that_read_memory_give_the_models_numbers_for_inputs_of_any_strides(way, tmp_path):
    model, x = made(way)
    quantized = rw.quantize(model, laid_out(channels_last, x), PRECISE)
    quantized.save(tmp_path / "model.rw")
    for network in (quantized, rw.load(tmp_path / "model.rw")):
        check(network, ((x,), {}))
        for layout in LAYOUTS.values():
            with torch.no_grad():
                torch.testing.assert_close(network(layout(x)), model(layout(x)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", in_thirds(READERS))
def test_the_pass_over_the_samples_computes_what_the_network_computes(way):
    model, x = made(way)
    quantized = rw.quantize(model, x, quantizing(rounding=rw.rounding.Nearest(), correction=None))
    with torch.no_grad():
        wanted, found = model(x), quantized(x)
    error = float((wanted - found).square().sum() / wanted.square().sum())
    assert quantized.report.output_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("name", in_thirds(sorted(CASES.keys() - {"VariadicInputs"})))  # no batch can describe that one
def test_strides_of_inputs_change_nothing(name, tmp_path):
    model, inputs = CASES[name].build(), CASES[name].inputs(8)
    args, kwargs = laid_out(permuted, inputs)
    samples = [{**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}]
    quantized = rw.quantize(model, samples, PRECISE)
    check(quantized, inputs)
    if name not in ("ControlFlowOperator", "NestedOutput"):  # which a file cannot hold
        quantized.save(tmp_path / "model.rw")
        check(rw.load(tmp_path / "model.rw"), inputs)
