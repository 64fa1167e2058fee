"""Pruning keeps a network comparable: what readers give corresponds to the channels left of what they gave."""

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from roundwise.engine.rewriting import folded
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.channels import find_channel_groups
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.transforms.prune import prune


class Net(nn.Module):
    """Two blocks with shortcuts, without biases."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.inner = nn.ModuleList(nn.Conv2d(8, 6, 3, padding=1, bias=False) for _ in range(2))
        self.outer = nn.ModuleList(nn.Conv2d(6, 8, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = F.relu(x + outer(F.relu(inner(x))))
        return self.head(x.mean((2, 3)))


READERS = ["inner.0", "outer.0", "inner.1", "outer.1", "head"]
GONE = [1, 3, 4]  # of every group that can lose channels


class Recorder(fx.Interpreter):
    """Keeps the value of each operation by its name."""

    def __init__(self, module):
        super().__init__(module)
        self.values = {}

    def run_node(self, node):
        self.values[node.name] = super().run_node(node)
        return self.values[node.name]


def values(graph, inputs):
    recorder = Recorder(graph.module())
    recorder.run(inputs)
    return recorder.values


@pytest.fixture
def graph():
    torch.manual_seed(0)
    return folded(TorchExport().graph(Net().eval(), (torch.randn(4, 3, 5, 5),), {}))


def silence(graph):
    """Set to zero what reads the channels that will go, so that removing them changes nothing."""
    for group in find_channel_groups(graph):
        for member in group.members:
            if member.role == "columns" and not group.reason:
                places = [place for channel in GONE for place in member.places[channel]]
                weight = graph.constants[member.constant].clone()
                graph.constants[member.constant] = weight.index_fill(member.dim, torch.tensor(places), 0.0)


def test_tensors_that_correspond_are_equal_if_nothing_read_what_is_gone(graph):
    silence(graph)
    removed = {number: GONE for number, group in enumerate(find_channel_groups(graph)) if not group.reason}
    assert len(removed) == 3
    pruned = prune(graph, removed, READERS, graph)
    inputs = torch.randn(2, 3, 5, 5)
    found, wanted = values(pruned.graph, inputs), values(pruned.reference, inputs)
    layers = {layer.name: layer for layer in find_layers(pruned.graph)}
    compared = {layers[name].node.name for name in READERS}
    compared |= {layers[name].addend.name for name in ("outer.0", "outer.1")}
    assert compared <= pruned.counterparts.keys()
    for name, counterpart in pruned.counterparts.items():
        torch.testing.assert_close(found[name], wanted[counterpart])
    assert found[layers["stem"].node.name].shape[1] == 5
    assert layers["stem"].node.name not in pruned.counterparts  # it reads what it read, and needs no target
    torch.testing.assert_close(graph.module()(inputs), pruned.reference.module()(inputs), rtol=0, atol=0)


def test_readers_have_a_bias_and_others_stay_without(graph):
    removed = {number: GONE for number, group in enumerate(find_channel_groups(graph)) if not group.reason}
    layers = {layer.name: layer for layer in find_layers(prune(graph, removed, READERS, graph).graph)}
    assert {name for name, layer in layers.items() if layer.own_bias is None} == {"stem"}
    assert not layers["outer.0"].map.bias.any()


def test_pruning_twice_corresponds_to_the_first_network(graph):
    silence(graph)
    inputs = torch.randn(2, 3, 5, 5)
    inner = next(number for number, group in enumerate(find_channel_groups(graph)) if group.rows == ("inner.1.weight",))
    once = prune(graph, {inner: [1]}, READERS, graph)
    again = prune(
        once.graph, {inner: [2, 3]}, READERS, once.reference, once.counterparts
    )  # the third and fourth of old
    found, wanted = values(again.graph, inputs), values(again.reference, inputs)
    for name, counterpart in again.counterparts.items():
        torch.testing.assert_close(found[name], wanted[counterpart])
    assert again.graph.constants["inner.1.weight"].shape[0] == 3
