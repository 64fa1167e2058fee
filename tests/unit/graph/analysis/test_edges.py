"""The first and the last layers of a network, and what `edge_bits` does with them."""

import dataclasses
import json

import pytest
import torch
from commandline import np_file, run
from facts import raises
from torch import nn

import roundwise as rw
from roundwise.exporters import OnnxExporter
from roundwise.graph.analysis.edges import edge_layers, edge_readers
from roundwise.graph.analysis.layers import find_layers

IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two stems, a block with a gate, a shortcut, a global pool, and two heads, one behind a hidden layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.other_stem = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.body, self.gate = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)
        self.end = nn.Conv2d(4, 4, 1)
        self.hidden, self.head, self.other_head = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 5)

    def forward(self, x):
        y = torch.relu(self.stem(x) + self.other_stem(x))
        y = torch.relu(self.body(y)) * torch.sigmoid(self.gate(y.mean((2, 3))))[..., None, None] + y
        y = torch.relu(self.end(y)).mean((2, 3))
        return self.head(torch.relu(self.hidden(y))), self.other_head(y)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net().eval()


def quantized(model, **settings):
    settings = {"activations": rw.Activations(bits=3), "edge_bits": 8} | settings
    stage = rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest(), **settings)
    report = rw.quantize(model, IMAGES, stage).report
    return {one.name: one.bits for one in report.layers}, {one.name: one.bits for one in report.activations}


def test_the_first_and_the_last_layers_are_found(model):
    graph = rw.capture(model, IMAGES).graph
    layers = find_layers(graph)
    names = {layer.weight: layer.name for layer in layers}
    assert {names[one] for one in edge_layers(graph, layers)} == {"stem", "other_stem", "head", "other_head"}


def test_a_pool_before_last_layers_is_read_at_the_edge_and_others_are_not(model):
    graph = rw.capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval(),
                       IMAGES).graph  # fmt: skip
    layers = find_layers(graph)
    pools = edge_readers(graph, layers) - {call for layer in layers for call in layer.calls}
    assert len(pools) == 1
    graph = rw.capture(model, IMAGES).graph  # its pools are read by a gate, and by a hidden layer too
    layers = find_layers(graph)
    assert edge_readers(graph, layers) <= {call for layer in layers for call in layer.calls}


def test_edge_bits_are_for_these_layers_and_what_they_read(model):
    layers, activations = quantized(model)
    assert {name for name, bits in layers.items() if bits == 8} == {"stem", "other_stem", "head", "other_head"}
    assert set(layers.values()) == {3, 8}
    assert activations["x"] == 8
    assert sorted(activations.values()).count(8) == 3  # the input, the pooled features, and the hidden ones
    assert 3 in activations.values()


def test_without_them_all_layers_are_alike(model):
    layers, activations = quantized(model, edge_bits=None)
    assert {*layers.values(), *activations.values()} == {3}


def test_an_override_by_name_counts_more_and_a_glob_or_a_kind_less(model):
    three = rw.Override(weights=rw.Weights(bits=4), activations=rw.Activations(bits=4))
    layers, activations = quantized(model, overrides={"*": three, "op:linear": three, "head": three, "x": three})
    assert (layers["stem"], layers["head"], layers["other_head"], layers["body"]) == (8, 4, 8, 4)
    assert activations["x"] == 4


def test_what_stays_in_float_stays_so(model):
    layers, activations = quantized(model, activations=None, overrides={"*stem": None})
    assert activations == {}
    assert {"stem", "other_stem"}.isdisjoint(layers)


def test_they_are_in_recipe_files_and_on_the_command_line(tmp_path):
    recipe = rw.Recipe((rw.Quantize(edge_bits=8),))
    assert rw.Recipe.from_dict(recipe.as_dict()) == recipe
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Linear(4, 2)\n")
    arguments = ("--data", np_file(tmp_path, (8, 4)), "--rounding", "nearest", "--bits", 2, "--edge-bits", 6, "--json")
    result = run("quantize", f"{tmp_path}/net.py:build", *arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["report"]["stages"][-1]["layers"][0]["bits"] == 6


def test_bits_that_a_target_cannot_hold_are_told_before_the_run():
    target = OnnxExporter.targets[0]
    narrow = tuple(kind for kind in target.weight_types if not kind.holds(-(2**15), 2**15 - 1))
    with raises(rw.RecipeError, "edge_bits"):
        dataclasses.replace(target, weight_types=narrow).check(rw.Recipe((rw.Quantize(edge_bits=16),)))
