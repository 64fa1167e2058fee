"""Writes in place to what is a view in one memory layout and a copy in another: never silently another function."""

import pytest
import torch
from facts import has, raises
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw

IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SEQUENCES = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
EXACT = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest(), rewrites=())


class Writes(nn.Module):
    """A convolution, and a way to overwrite its input or output."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.way = nn.Conv2d(3, 4, 3, padding=1), way

    def forward(self, x):
        return self.way(self, x)


def both(value, changed):
    return value.sum((2, 3)), changed


def of_input(make):
    def way(model, x):
        changed = make(x).mul_(2)
        return both(model.conv(x), changed)

    return way


def of_output(make):
    def way(model, x):
        h = model.conv(x)
        changed = make(h).add_(1)
        return both(h, changed)

    return way


def writes_to_the_source(model, x):
    h = model.conv(x)
    seen = h.flatten(1)
    h.mul_(2)
    return both(h, seen)


def through_a_view_of_it(model, x):
    h = model.conv(x)
    h.flatten(1)[:, 0] = 5
    return both(h, x)


def relu_module(model, x):
    h = model.conv(x)
    return both(h, nn.ReLU(inplace=True)(nn.Flatten()(h)))


def without_its_mean(model, x):
    h = model.conv(x)
    groups = h.reshape(h.shape[0], 2, -1)
    groups.sub_(groups.mean(-1, keepdim=True))
    return both(h, x)


MAKES = {
    "flatten": lambda h: h.flatten(1),
    "reshape": lambda h: h.reshape(h.shape[0], -1),
    "ravel": lambda h: h.ravel(),
    "contiguous": lambda h: h.contiguous(),
    "contiguous, channels last": lambda h: h.contiguous(memory_format=torch.channels_last),
    "to channels last": lambda h: h.to(memory_format=torch.channels_last),
    "permute and contiguous": lambda h: h.permute(0, 2, 3, 1).contiguous(),
    "unflatten and flatten": lambda h: h.unflatten(2, (2, 3)).flatten(1),
    "reshape_as": lambda h: h.reshape_as(torch.zeros(h.shape[0], h[0].numel())),
}
WAYS = {
    **{f"input, {name}": of_input(make) for name, make in MAKES.items()},
    **{f"output, {name}": of_output(make) for name, make in MAKES.items()},
    "writes to the source": writes_to_the_source,
    "through a view of it": through_a_view_of_it,
    "ReLU": relu_module,
    "without its mean": without_its_mean,
}
LAYOUTS = {
    "contiguous": IMAGES,
    "channels last": IMAGES.to(memory_format=torch.channels_last),
    "height and width exchanged": IMAGES.mT.contiguous().mT,
    "reversed": IMAGES.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "a part": torch.cat([IMAGES, IMAGES], 3)[..., :6],
}


def assert_same(network, model, images):
    copy = torch.empty_strided(images.shape, images.stride()).copy_(images)
    with torch.no_grad():
        for one, other in zip(network(images), model(copy), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("way", in_thirds(WAYS))
def test_what_a_layout_changes_is_computed_as_the_model_does_or_refused(way):
    model = Writes(way).eval()
    try:
        network = rw.quantize(model, IMAGES, EXACT)
    except rw.CaptureError as error:
        assert has(str(error), "in place", "clone()")  # noqa: PT017  either is right
        return
    assert any(has(note, "in place", "test_in_place.py") for note in network.report.notes)
    for samples in (8, 1):
        assert_same(network, model, IMAGES[:samples])
    for name, images in LAYOUTS.items():
        if name != "contiguous":
            with raises(rw.ModelError, "'x'", "x.contiguous()"):
                network(images)


def test_one_channel_with_the_strides_of_channels_last_is_refused():
    class Grey(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3)

        def forward(self, x):
            h = self.conv(x)
            h.flatten(1).mul_(2)
            return h.sum((2, 3))

    model, images = Grey().eval(), IMAGES[:, :1]
    network = rw.quantize(model, images, EXACT)
    grey = images.contiguous().to(memory_format=torch.channels_last)
    with raises(rw.ModelError, "clone(memory_format=torch.contiguous_format)"):
        network(grey)
    with torch.no_grad():
        torch.testing.assert_close(
            network(grey.clone(memory_format=torch.contiguous_format)), model(images.contiguous()), rtol=1e-3, atol=1e-3
        )


class OfSequences(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.linear, self.way = nn.Linear(6, 6), way

    def forward(self, x):
        return self.way(self.linear(x))


def by_length(h):
    changed = h.transpose(1, 2).contiguous().mul_(2)
    return h + changed.transpose(1, 2)


def by_batch(h):
    h.permute(1, 0, 2).reshape(-1, 6).mul_(2)
    return h


def test_no_other_length_is_taken():
    network = rw.quantize(OfSequences(by_length).eval(), SEQUENCES, EXACT)
    with raises(rw.ModelError, "dimension 1", "5"):
        network(SEQUENCES[:, :1])


def test_a_dynamic_length_is_refused():
    with raises(rw.CaptureError, "contiguous", "length", "clone()"):
        rw.quantize(OfSequences(by_length).eval(), SEQUENCES, EXACT, dynamic={"x": {1: "length"}})


def test_what_one_sample_changes_is_refused_with_its_line():
    with raises(rw.CaptureError, "1 sample", "reshape", "mul_", "test_in_place.py", "clone()"):
        rw.quantize(OfSequences(by_batch).eval(), SEQUENCES, EXACT)


def into_the_channels_alone(model, x):
    pooled = model.conv(x).mean((2, 3), keepdim=True)
    return pooled.flatten(1).relu_(), pooled


def of_new_memory(model, x):
    return model.conv(x).flatten(1).relu_(), x


def before_the_copy(model, x):
    h = model.conv(x) + 0
    h.view(-1)[0] = 3
    return h.flatten(1), h


def of_contiguous_that_nothing_else_reads(model, x):
    return model.conv(x.contiguous()).contiguous().relu_(), x


HARMLESS = [into_the_channels_alone, of_new_memory, before_the_copy, of_contiguous_that_nothing_else_reads]


@pytest.mark.parametrize("way", HARMLESS)
def test_harmless_writes_take_any_layout(way):
    model = Writes(way).eval()
    network = rw.quantize(model, IMAGES, EXACT)
    assert not any(has(note, "in place") for note in network.report.notes)
    layouts = [LAYOUTS["contiguous"]] if way is before_the_copy else LAYOUTS.values()
    for images in layouts:
        assert_same(network, model, images)


def test_a_program_with_such_writes_takes_contiguous_inputs_only():
    model = Writes(relu_module).eval()
    program = torch.export.export(model, (IMAGES,))
    network = rw.quantize(program, IMAGES, EXACT)
    assert_same(network, model, IMAGES)
    with raises(rw.ModelError, "x.contiguous()"):
        network(LAYOUTS["channels last"])
