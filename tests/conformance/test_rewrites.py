"""Every rewrite of the table: settings like any method's, outputs as they were, the argument left alone."""

import pytest
import torch
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.engine.rewriting import apply_rewrites
from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.methods.rewrites import REWRITES
from roundwise.testing import SETTINGS_CHECKS

REWRITE = pytest.mark.parametrize("kind", REWRITES.values(), ids=REWRITES)


class Network(nn.Module):
    """Layers of many kinds, one of them used twice, before and after functions of many kinds."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.point = nn.Conv2d(8, 6, 1, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.twice = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = self.point(nn.functional.hardswish(self.depthwise(x)))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.twice(self.twice(tokens).relu())
        return self.head(tokens), self.up(x).argmax(1), self.up(nn.functional.relu6(x))


@pytest.fixture(scope="module")
def captured():
    torch.manual_seed(0)
    samples = torch.randn(2, 3, 6, 6)
    return rewrite(TorchExport().graph(Network().eval(), (samples,), {})), samples


@REWRITE
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_its_settings_hold_to(check, kind):
    check(kind)


@REWRITE
def test_a_rewrite_leaves_outputs_and_its_argument_as_they_were(kind, captured):
    graph, samples = captured
    constants, code = {name: value.clone() for name, value in graph.constants.items()}, str(graph.operations)
    after, _ = apply_rewrites(graph, (kind(), kind()), (samples,), {})  # raises if outputs differ
    assert str(graph.operations) == code
    assert graph.constants.keys() == constants.keys()
    assert all(torch.equal(value, graph.constants[name]) for name, value in constants.items())
    assert [layer.name for layer in find_layers(after)] == [layer.name for layer in find_layers(graph)]
    assert all("val" in node.meta for node in after.operations.nodes if node.op == "call_function")


@REWRITE
def test_a_rewritten_network_is_quantized_saved_and_loaded(kind, tmp_path):
    torch.manual_seed(0)
    model, samples = Network().eval(), torch.randn(9, 3, 6, 6)
    recipe = quantizing(rw.Weights(bits=8), rw.rounding.Nearest(), activations=rw.Activations(), rewrites=(kind(),))
    quantized = rw.quantize(model, samples, recipe)
    assert quantized.report.output_error < 0.02
    quantized.save(tmp_path / "model.rw")
    loaded = rw.load(tmp_path / "model.rw")
    assert loaded.recipe == recipe
    assert torch.equal(loaded(samples)[0], quantized(samples)[0])


def test_names_in_the_table_are_in_order_and_unlike_each_other():
    assert list(REWRITES) == sorted(REWRITES)
    assert all(name == name.lower() and " " not in name and "_" not in name for name in REWRITES)
    assert len(set(REWRITES.values())) == len(REWRITES)
