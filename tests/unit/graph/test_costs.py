"""Costs of operations, compared with counting by hand and with PyTorch's own counter."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from roundwise.engine.rewriting import folded
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.costs import costs_of
from roundwise.graph.transforms.normalize import normalize


def captured(model, *shape, form=normalize, dynamic=None):
    torch.manual_seed(0)
    return form(TorchExport().graph(model.eval(), (torch.randn(4, *shape),), {}, dynamic))


def counted(model, *shape):
    """MACs of one sample by PyTorch's counter, which counts an addition and a multiplication as two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, *shape))
    return counter.get_total_flops() // 2


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused, self.inward, self.out = fused, nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x):
        q, k, v = self.inward(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


NETWORKS = {
    "linear": (nn.Linear(7, 5), (3, 7)),
    "strided, without a bias": (nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), (3, 9, 11)),
    "grouped": (nn.Conv2d(6, 9, 3, groups=3), (6, 8, 8)),
    "depthwise": (nn.Conv2d(6, 12, 5, padding="same", groups=6), (6, 8, 8)),
    "transposed": (nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, output_padding=1), (6, 5, 5)),
    "1d, dilated": (nn.Conv1d(4, 6, 3, dilation=2), (4, 20)),
    "3d": (nn.Conv3d(2, 3, 3, padding=1), (2, 4, 5, 6)),
    "attention": (Attention(fused=False), (10, 12)),
    "several": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)), (3, 8, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_pytorchs_counter(name):
    model, shape = NETWORKS[name]
    costs = costs_of(captured(model, *shape))
    assert costs.macs == counted(model, *shape) > 0
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert costs.uncounted == ()


def test_attention_as_one_operation_costs_what_its_products_do():
    fused, apart = (costs_of(captured(Attention(fused=fused), 10, 12)).macs for fused in (True, False))
    assert fused == apart


def test_a_recurrent_layer_multiplies_each_step_by_all_its_weights():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(5, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    assert costs_of(captured(Last(), 7, 5)).macs == 7 * 3 * 8 * (5 + 8)


def test_each_operation_has_its_own_costs():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    costs = costs_of(captured(model, 3, 10, 10))
    found = [(one.macs, one.parameters, one.bytes) for one in costs.operations]
    # The batch-norm stores a factor, a shift, a mean and a variance for each channel.
    assert found == [(100 * 8 * 27, 8 * 28, 3200), (0, 4 * 8, 3200), (0, 0, 3200), (100 * 32, 36, 1600)]
    assert costs.bytes == 3 * 3200 + 1600
    assert costs_of(captured(model, 3, 10, 10, form=folded)).parameters == 8 * 28 + 36


def test_tensors_that_are_needed_later_count_in_the_peak():
    class Net(nn.Module):
        def __init__(self, shortcut):
            super().__init__()
            self.shortcut, self.a, self.b = shortcut, nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            x = F.relu(x)
            y = self.b(F.relu(self.a(x)))
            return x + y if self.shortcut else y

    assert costs_of(captured(Net(False), 16)).peak_bytes == 2 * 64
    assert costs_of(captured(Net(True), 16)).peak_bytes == 3 * 64


def test_a_weight_that_is_used_twice_is_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x):
            return self.layer(F.relu(self.layer(x)))

    costs = costs_of(captured(Twice(), 6))
    assert (costs.macs, costs.parameters) == (2 * 36, 42)
    calls = [one.node for one in costs.operations if one.macs]
    assert costs.of(calls) == (72, 42)


def test_sizes_are_those_of_the_samples_where_they_are_dynamic():
    model = nn.Conv2d(3, 4, 3, padding=1)
    graph = captured(model, 3, 12, 16, dynamic={"input": {2: "height", 3: "width"}})
    (image,) = graph.operations.find_nodes(op="placeholder")
    assert not isinstance(image.meta["val"].shape[2], int)
    assert costs_of(graph).macs == 12 * 16 * 4 * 27


def test_what_depends_on_values_is_listed():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = self.a(x)
            return self.b(y[y[:, 0] > 0])

    costs = costs_of(captured(Masked(), 4))
    assert costs.macs == 16
    assert any("linear" in name for name in costs.uncounted)
