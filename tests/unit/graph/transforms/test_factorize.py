"""Layers replaced by chains: the same outputs, names, counterparts and what training must know."""

import torch
from torch import nn

from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.transforms.factorize import factorize
from roundwise.graph.transforms.normalize import normalize


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.last(torch.relu(self.bn(self.conv(x))))


def cut_graph(model, samples):
    """A graph and its copy with `conv` as a 3 × 3 layer to 27 channels that pick its inputs, and a 1 × 1 layer."""
    graph = normalize(TorchExport().graph(model.eval(), (samples,), {}))
    layer = next(layer for layer in find_layers(graph) if layer.name.endswith("conv"))
    first, second = layer.map.in_two(27, first=2)
    weight = graph.constants[layer.weight]
    parts = [(first, torch.eye(27).reshape(first.weight_shape)), (second, weight.reshape(second.weight_shape))]
    return graph, layer, factorize(graph, {layer.name: parts})


def test_the_outputs_stay_and_the_graph_before_is_left_alone():
    samples = torch.randn(2, 3, 6, 6)
    model = Block()
    graph, layer, cut = cut_graph(model, samples)
    before = str(graph.operations)
    torch.testing.assert_close(cut.graph.module()(samples), model(samples))
    assert str(graph.operations) == before
    assert layer.weight in graph.constants
    assert layer.weight not in cut.graph.constants


def test_the_chain_is_named_after_the_layer_and_its_output_is_the_layers():
    graph, layer, cut = cut_graph(Block(), torch.randn(2, 3, 6, 6))
    chain = cut.chains["conv"]
    assert [one.name for one in chain] == ["conv.0", "conv.1"]
    assert cut.outputs["conv"] is chain[1].node
    names = {node.name for node in graph.operations.nodes if node.op == "call_function"}
    assert cut.counterparts[chain[1].node.name] == layer.node.name
    assert chain[0].node.name not in cut.counterparts
    assert set(cut.counterparts) == set(cut.counterparts.values()) == names


def test_the_batch_norm_after_the_layer_follows_the_last_part():
    _, _, cut = cut_graph(Block(), torch.randn(2, 3, 6, 6))
    (reader,) = cut.outputs["conv"].users
    assert "batch_norm" in str(reader.target)


def test_what_was_trained_is_trained():
    model = Block()
    model.last.weight.requires_grad_(False)
    _, _, cut = cut_graph(model, torch.randn(2, 3, 6, 6))
    origins = cut.graph.training.origins
    assert origins["conv.0.weight"].trainable
    assert origins["conv.0.weight"].names == ("conv.weight",)
    model.conv.weight.requires_grad_(False)
    _, _, frozen = cut_graph(model, torch.randn(2, 3, 6, 6))
    assert not frozen.graph.training.origins["conv.0.weight"].trainable
