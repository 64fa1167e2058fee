"""A model whose code decides by something that is not in its inputs' values: refused or told in the report."""

import pytest
import torch
from facts import has, raises
from recipes import quantizing
from torch import nn

import roundwise as rw

IMAGES = torch.randn(24, 3, 6, 8, generator=torch.Generator().manual_seed(0))
EXACT = quantizing(weights=rw.Weights(bits=16), rounding=rw.rounding.Nearest(), rewrites=())


class Decides(nn.Module):
    """A convolution, and one more where `decide` says so of the input and the convolution's output."""

    def __init__(self, decide):
        super().__init__()
        self.conv, self.decide = nn.Conv2d(3, 4, 3, padding=1), decide

    def forward(self, x):
        y = self.conv(x)
        return y + 1 if self.decide(x, y) else y


def close(one, other):
    return torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def noted(quantized, *facts):
    return any(has(note, *facts) for note in quantized.report.notes)


def in_memory_as(order):
    return IMAGES.permute(order).contiguous().permute([order.index(dim) for dim in range(4)])


LAYOUTS = {
    "channels last": IMAGES.to(memory_format=torch.channels_last),
    "reversed": in_memory_as([3, 2, 1, 0]),
    "rows and columns exchanged": in_memory_as([0, 1, 3, 2]),
    "a part of larger images": torch.cat([IMAGES, IMAGES], 3)[..., :8],
}
BY_LAYOUT = {
    "is_contiguous": lambda x, y: x.is_contiguous(),
    "is_contiguous, channels last": lambda x, y: x.is_contiguous(memory_format=torch.channels_last),
    "stride": lambda x, y: x.stride(3) == 1,
    "strides": lambda x, y: x.stride()[0] < x.stride()[1],
    "dim_order": lambda x, y: x.dim_order() == (0, 1, 2, 3),
    "of a value between": lambda x, y: y.is_contiguous(),
}


@pytest.mark.parametrize("decide", BY_LAYOUT.values(), ids=BY_LAYOUT)
@pytest.mark.parametrize("samples", [IMAGES, LAYOUTS["channels last"]], ids=["contiguous", "channels last"])
def test_no_layout_gives_other_outputs_than_the_models(decide, samples):
    model = Decides(decide).eval()
    quantized = rw.quantize(model, samples, EXACT)
    assert noted(quantized, "contiguous")
    with torch.no_grad():
        assert close(quantized(IMAGES), model(IMAGES))
        for images in LAYOUTS.values():
            with raises(rw.ModelError, "'x'", "x.contiguous()"):
                quantized(images)


def test_code_that_asks_for_the_layout_and_computes_the_same_may_have_any():
    class MakesContiguous(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x if x.is_contiguous() else x.contiguous()).flatten(1)

    model = MakesContiguous().eval()
    quantized = rw.quantize(model, IMAGES, EXACT)
    assert not quantized.report.notes
    with torch.no_grad():
        for images in LAYOUTS.values():
            assert close(quantized(images), model(images))


def test_a_decision_by_gradients_of_the_inputs_is_told():
    model = Decides(lambda x, y: x.requires_grad).eval()
    quantized = rw.quantize(model, IMAGES, EXACT)
    assert noted(quantized, "gradients")
    assert close(quantized(IMAGES), model(IMAGES))


def test_asking_for_gradients_alone_is_not_told():
    model = Decides(lambda x, y: x.requires_grad and False).eval()
    assert not rw.quantize(model, IMAGES, EXACT).report.notes


IN_INFERENCE = {
    "the mode": lambda x, y: torch.is_inference_mode_enabled(),
    "the input": lambda x, y: x.is_inference(),
    "the output": lambda x, y: y.is_inference(),
}


@pytest.mark.parametrize("decide", IN_INFERENCE.values(), ids=IN_INFERENCE)
def test_a_decision_by_inference_mode_is_told(decide):
    model = Decides(decide).eval()
    quantized = rw.quantize(model, IMAGES, EXACT)
    assert noted(quantized, "torch.inference_mode()")
    with torch.no_grad():
        assert close(quantized(IMAGES[:1]), model(IMAGES[:1]))


BY_GRADIENTS_OF_WEIGHTS = {
    "the mode": lambda x, y: torch.is_grad_enabled(),
    "the output": lambda x, y: y.requires_grad,
    "a leaf": lambda x, y: y.is_leaf,
    "history": lambda x, y: y.grad_fn is not None,
}


@pytest.mark.parametrize("decide", BY_GRADIENTS_OF_WEIGHTS.values(), ids=BY_GRADIENTS_OF_WEIGHTS)
def test_a_decision_by_gradients_of_weights_is_refused(decide):
    with raises(rw.CaptureError, "gradients"):
        rw.quantize(Decides(decide).eval(), IMAGES, EXACT)


# -------------------------------------------------------------------------------------------------------- training mode


class ByMode(nn.Module):
    def forward(self, x):
        return x + 0.5 if self.training else x


PARTS = {
    "dropout": (nn.Dropout(0.5), "Dropout"),
    "dropout that hardly ever drops": (nn.Dropout(1e-9), "Dropout"),
    "batch-norm": (nn.BatchNorm2d(4), "BatchNorm2d"),
    "batch-norm that runs with its own statistics in both modes": (nn.BatchNorm2d(4, track_running_stats=False), None),
    "RReLU": (nn.RReLU(), "RReLU"),
    "code of one's own": (ByMode(), "ByMode"),
    "a convolution": (nn.Conv2d(4, 4, 1), None),
    "no dropout": (nn.Dropout(0.0), None),
}


@pytest.mark.filterwarnings("ignore:the model is in training mode")
@pytest.mark.parametrize(("part", "kind"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("whole", [False, True], ids=["a part", "the whole"])
def test_the_report_names_parts_in_training_mode_that_compute_something_else_there(part, kind, whole):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), part).eval()
    (model if whole else part).train()
    before, generator = {name: it.clone() for name, it in model.state_dict().items()}, torch.get_rng_state()
    quantized = rw.quantize(model, IMAGES, EXACT)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    assert part.training
    told = [note for note in quantized.report.notes if has(note, "training mode")]
    assert len(told) == (kind is not None)
    assert kind is None or has(told[0], "'1'", kind, "model.eval()")
    with torch.no_grad():
        assert close(quantized(IMAGES), model.eval()(IMAGES))


def test_conjugate_outputs_are_compared():
    class Conjugate(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return torch.fft.fft(self.layer(x)).conj()

    model, x = Conjugate().eval(), torch.randn(8, 6)
    assert close(rw.quantize(model, x, EXACT)(x).resolve_conj(), model(x).resolve_conj())


class OfTwo(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.layer, self.way = nn.Linear(6, 6), way

    def forward(self, a, b):
        return self.way(self.layer, a, b)


def asks(layer, a, b):
    return layer(a) if a is b else layer(a) + b


def writes(layer, a, b):
    a.add_(1)
    return layer(b)


PAIR = torch.randn(8, 6), torch.randn(8, 6)


@pytest.mark.parametrize(
    "way", [lambda layer, a, b: layer(a) if a is b else layer(a) + b, writes], ids=["is", "writes"]
)
def test_what_one_tensor_for_two_inputs_changes_is_told(way):
    model = OfTwo(way).eval()
    network = rw.quantize(model, PAIR, EXACT)
    assert noted(network, "one tensor")
    assert close(network(*PAIR), model(*(it.clone() for it in PAIR)))


def test_one_tensor_for_two_inputs_that_changes_nothing_is_not_told():
    assert not noted(rw.quantize(OfTwo(lambda layer, a, b: layer(a) * b).eval(), PAIR, EXACT), "one tensor")


def test_a_write_to_an_input_is_told():
    assert noted(rw.quantize(OfTwo(writes).eval(), PAIR, EXACT), "'a'", "test_checks.py")
