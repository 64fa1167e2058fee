"""Activations that are computed again: the same gradients and statistics, with less memory."""

import pytest
import torch
from torch import nn

import roundwise as rw
from roundwise.engine.trainable import Trainable
from roundwise.methods.training import LSQPlus


class Deep(nn.Module):
    """Twelve blocks with batch-norm and dropout; inputs by position and by name, two outputs."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)) for _ in range(12)
        )

    def forward(self, x, *, scale):
        for block in self.blocks:
            x = x + block(x)
        return {"sum": x.sum(1), "scaled": x * scale}


@pytest.fixture
def module():
    torch.manual_seed(0)
    inputs = {"x": torch.randn(64, 8), "scale": torch.rand(64, 1)}
    return Trainable(rw.capture(Deep().eval(), inputs), LSQPlus()).train(), inputs


def step(module, inputs):
    """The outputs and gradients of a step, the statistics after it, and the bytes kept for its backward pass."""
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    torch.manual_seed(1)
    module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = module(inputs["x"], scale=inputs["scale"])
    (outputs["sum"].square().mean() + outputs["scaled"].mean()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    return outputs, gradients, {name: value.clone() for name, value in module.named_buffers()}, kept


def test_gradients_and_statistics_have_the_same_bits_and_less_is_kept(module):
    module, inputs = module
    start = {name: value.clone() for name, value in module.state_dict().items()}
    *wanted, all_bytes = step(module, inputs)
    module.load_state_dict(start)
    module.recompute()
    *found, some_bytes = step(module, inputs)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name
    assert int(found[2]["blocks.0.1.num_batches_tracked"]) == 1
    assert some_bytes < 0.6 * all_bytes


def test_without_gradients_nothing_is_computed_twice(module):
    module, inputs = module
    module.eval()
    wanted = module(inputs["x"], scale=inputs["scale"])
    module.recompute()
    with torch.no_grad():
        found = module(**inputs)
    assert torch.equal(found["sum"], wanted["sum"])
