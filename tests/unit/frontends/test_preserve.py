"""Whatever a model does while it is captured, it has its attributes back afterwards."""

import contextlib
from collections import OrderedDict

import pytest
import torch
from torch import nn

from roundwise.frontends import TorchExport
from roundwise.frontends.preserve import model_left_as_it_was


class Frozen(OrderedDict):
    """A dict that cannot be changed, as configurations of diffusers are."""

    def __setitem__(self, name, value):
        if getattr(self, "frozen", False):
            raise TypeError("frozen")
        super().__setitem__(name, value)

    def update(self, *args, **kwargs):
        raise TypeError("frozen")


class Remembers(nn.Module):
    """Writes to attributes of every kind while it runs."""

    def __init__(self):
        super().__init__()
        self.fc, self.config = nn.Linear(3, 2), Frozen(width=3)
        self.config.frozen = True
        self.seen, self.sizes, self.names = [1, 2], {"x": 3}, {"a"}
        self.last = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.seen.clear()
        self.sizes["x"] = len(self.seen)
        self.names.add("b")
        self.last = "called"
        dict.clear(self.config)
        return self.fc(x)


@pytest.mark.parametrize("raises", [False, True])
def test_attributes_come_back_even_where_their_own_class_forbids_changes(raises):
    model = Remembers()
    before = {name: id(value) for name, value in vars(model).items()}
    with pytest.raises(ZeroDivisionError) if raises else contextlib.nullcontext(), model_left_as_it_was(model):
        model.eval()(torch.ones(2, 3))
        model.calls += 1
        assert not model.config
        if raises:
            raise ZeroDivisionError
    assert {name: id(value) for name, value in vars(model).items()} == before
    assert (model.seen, model.sizes, model.names, model.last) == ([1, 2], {"x": 3}, {"a"}, None)
    assert (dict(model.config), model.training, float(model.calls)) == ({"width": 3}, True, 0.0)


def test_a_model_with_a_frozen_configuration_is_captured():
    class Configured(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.config = nn.Linear(3, 2), Frozen(width=3)
            self.config.frozen = True

        def forward(self, x):
            return self.fc(x)

    model = Configured().eval()
    config = model.config
    TorchExport().graph(model, (torch.randn(2, 3),), {})
    assert model.config is config
    assert dict(config) == {"width": 3}
