"""Layers have the names that the user gave them, whatever stands around the model or its parts."""

import pytest
import torch
from facts import raises
from recipes import quantizing
from thirds import in_thirds
from torch import nn
from torch.optim.swa_utils import AveragedModel

import roundwise as rw
from roundwise.frontends.wrappers import unwrapped

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

X = torch.randn(16, 4)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(4, 4), nn.Dropout()
        self.matrix = nn.Parameter(torch.eye(4) + 0.1)

    def forward(self, x):
        if x.dim() == 2:
            x = self.fc(x)
        return self.drop(x).relu() @ self.matrix


class Whole(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part, self.out = part, nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.part(x))


def of_peft(kind):
    """A class that stands for the one of that name in PEFT."""
    kind.__module__ = kind.forward.__module__ = "peft.standing_in"
    return kind


@of_peft
class BaseTuner(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model.forward(*args, **kwargs)


class LoraModel(BaseTuner):
    pass


@of_peft
class PeftModel(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = LoraModel(model)

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


def compiled_in_place(model):
    model.compile()
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward)
    return model


def traced(model):
    return torch.jit.trace(model, torch.randn(3, 4))


WRAPPERS = {
    "compiled": torch.compile,
    "compiled in place": compiled_in_place,
    "compiled forward": compiled_forward,
    "data parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "PEFT": PeftModel,
    "scripted": torch.jit.script,
    "traced": traced,
    "several": lambda model: torch.compile(nn.DataParallel(AveragedModel(model))),
}
"""Each takes a module in evaluation mode; none of them changes what it computes."""


@pytest.mark.parametrize(("name", "around"), in_thirds(list(WRAPPERS), ["the model", "a part"]))
def test_layers_have_the_names_of_the_model_inside(name, around):
    plain = Whole(Part()).eval()
    wrap = WRAPPERS[name]
    wrapped = wrap(plain) if around == "the model" else Whole(wrap(plain.part)).eval()
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        expected = wrapped(X)
    quantized = rw.quantize(wrapped, X, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    assert [layer.name for layer in quantized.report.layers] == ["part.fc", "part.matrix", "out"]
    assert not quantized.report.kept_float
    with torch.no_grad():
        torch.testing.assert_close(quantized(X), expected, rtol=1e-3, atol=1e-3)


def test_what_torchscript_froze_is_captured_too():
    model = Whole(torch.jit.freeze(torch.jit.script(Part().eval()))).eval()
    quantized = rw.quantize(model, X, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    assert len(quantized.report.layers) == 3
    with torch.no_grad():
        torch.testing.assert_close(quantized(X), model(X), rtol=1e-3, atol=1e-3)


CONVOLUTIONS = {
    "one dimension": (
        lambda: [nn.Conv1d(3, 4, 3, 2, 1), nn.ConvTranspose1d(4, 4, 3, 2, 1, 1), nn.Conv1d(4, 4, 3, padding="same")],
        (3, 8),
    ),
    "two dimensions, groups, padding by name": (
        lambda: [
            nn.Conv2d(3, 6, 3, padding="same", groups=3, dilation=2),
            nn.ConvTranspose2d(6, 4, 3, (2, 1), 1, (1, 0), groups=2),
            nn.Conv2d(4, 4, 3, padding="valid"),
        ],
        (3, 8, 8),
    ),
    "three dimensions, no bias": (
        lambda: [nn.Conv3d(3, 4, 3, padding=1, bias=False), nn.ConvTranspose3d(4, 4, 2, 2, dilation=2)],
        (3, 4, 4, 4),
    ),
}


@pytest.mark.parametrize(("layers", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("form", ["trace", "script", "part"])
def test_convolutions_that_torchscript_writes_down_are_layers(layers, shape, form):
    plain, x = nn.Sequential(*layers()).eval(), torch.randn(8, *shape)
    if form == "part":
        plain.append(nn.Sequential(nn.ReLU()))
    model = torch.jit.script(plain) if form == "script" else torch.jit.trace(plain, x)
    if form == "part":
        model = nn.Sequential(nn.Identity(), model).eval()
    quantized = rw.quantize(model, x, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    names = [f"1.{n}" if form == "part" else str(n) for n in range(len(layers()))]
    assert [layer.name for layer in quantized.report.layers] == names
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), plain(x), rtol=1e-3, atol=1e-3)


def test_a_scripted_model_is_left_as_it_was():
    model = torch.jit.script(Whole(Part()))
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    with pytest.warns(UserWarning, match="training mode"):
        rw.capture(model, X)
    assert model.training
    assert all(part.training for part in model.modules())
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


def test_a_wrapper_with_hooks_stays():
    wrapped = nn.DataParallel(Part())
    assert unwrapped(wrapped) is wrapped.module
    wrapped.register_forward_hook(lambda module, inputs, output: output + 1)
    assert unwrapped(wrapped) is wrapped


def test_a_wrapper_whose_forward_was_written_anew_stays():
    class Doubles(nn.DataParallel):
        def forward(self, x):
            return 2 * self.module(x)

    wrapped = Doubles(Part())
    assert unwrapped(wrapped) is wrapped


def with_own_forward(wrapper):
    wrapper.forward = lambda x: 2 * type(wrapper).forward(wrapper, x)
    return wrapper


def with_own_call(kind):
    class Doubles(kind):
        def __call__(self, x):
            return 2 * super().__call__(x)

    return Doubles


def of_the_user(name, holds):
    def hold(self, model):
        nn.Module.__init__(self)
        setattr(self, holds, model)

    def doubled(self, x):
        return 2 * getattr(self, holds)(x)

    return type(name, (nn.Module,), {"__init__": hold, "forward": doubled})


class OwnTuner(BaseTuner):
    def forward(self, x):
        return 2 * self.model(x)


class OwnPeftModel(PeftModel):
    def forward(self, x):
        return 2 * super().forward(x)


COMPUTE = {
    "data parallel, forward set": lambda model: with_own_forward(nn.DataParallel(model)),
    "averaged, forward set": lambda model: with_own_forward(AveragedModel(model)),
    "PEFT, forward set": lambda model: with_own_forward(PeftModel(model)),
    "tuner, forward set": lambda model: with_own_forward(BaseTuner(model)),
    "compiled, forward set": lambda model: with_own_forward(torch.compile(model)),
    "data parallel, own call": lambda model: with_own_call(nn.DataParallel)(model),
    "averaged, own call": lambda model: with_own_call(AveragedModel)(model),
    "PEFT, own call": lambda model: with_own_call(PeftModel)(model),
    "tuner, own forward": OwnTuner,
    "PEFT, own forward": OwnPeftModel,
    "PEFT's name": of_the_user("PeftModel", "base_model"),
    "the tuner's name": of_the_user("BaseTuner", "model"),
    "the name of a compiled model": of_the_user("OptimizedModule", "_orig_mod"),
}
"""Each takes a module, and computes twice what that computes."""


@pytest.mark.parametrize("name", COMPUTE)
def test_a_wrapper_that_computes_something_stays(name):
    wrapped = COMPUTE[name](Part().eval())
    assert unwrapped(wrapped) is wrapped


def test_what_a_wrapper_computes_is_in_the_network():
    wrapped = Whole(COMPUTE["PEFT's name"](Part())).eval()
    with torch.no_grad():
        expected = wrapped(X)
    quantized = rw.quantize(wrapped, X, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    with torch.no_grad():
        torch.testing.assert_close(quantized(X), expected, rtol=1e-3, atol=1e-3)


def test_a_prompt_that_peft_learned_belongs_to_the_model():
    class Config:
        is_prompt_learning = True

    wrapped = PeftModel(Part())
    wrapped.peft_config = {"default": Config()}
    assert unwrapped(wrapped) is wrapped


def test_an_error_about_a_wrapped_model_says_where_its_paths_begin():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else x

    with raises(rw.CaptureError, "model.fc", "Decides", "DataParallel"):
        rw.quantize(nn.DataParallel(Decides()).eval(), X)
