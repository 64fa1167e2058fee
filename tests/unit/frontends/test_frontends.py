"""The table of front ends is all that the library knows of the forms in which models come."""

from typing import Any, ClassVar

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import fx, nn

import roundwise as rw
from roundwise.frontends import FRONTENDS, Facts, Frontend, Signature, TorchExport, frontend_for
from roundwise.graph.graph import CallStructure, Graph, InputSpec
from roundwise.graph.sizes import Dynamic

aten = torch.ops.aten
SAMPLES = torch.randn(16, 3)


class Weights(dict[str, torch.Tensor]):
    """A "model" that PyTorch knows nothing of: a linear layer's weight and bias."""


class FromWeights(Frontend):
    """Reads `Weights`, and writes down its graph by hand, as a reader of files would."""

    reads: ClassVar[str] = "Weights"

    def accepts(self, model: object) -> bool:
        return isinstance(model, Weights)

    def facts(self, model: Any) -> Facts:
        size = sum(tensor.nbytes for tensor in model.values())
        return Facts(Signature(("x",), ("x",)), torch.device("cpu"), torch.float32, size)

    def graph(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: Dynamic | None = None) -> Graph:
        operations = fx.Graph()
        x = operations.placeholder("x")
        weight, bias = operations.get_attr("layer.weight"), operations.get_attr("layer.bias")
        linear = operations.call_function(aten.linear.default, (x, weight, bias))
        operations.output(linear)
        x.meta["val"], weight.meta["val"], bias.meta["val"] = *args, model["weight"], model["bias"]
        linear.meta["val"] = torch.empty(len(args[0]), len(model["bias"]))
        constants = {"layer.weight": model["weight"], "layer.bias": model["bias"]}
        inputs = (InputSpec("x", (None, model["weight"].shape[1]), torch.float32),)
        return Graph(operations, constants, inputs, CallStructure.positional(["x"]))


def test_pytorch_models_and_programs_are_read_through_torch_export():
    program = torch.export.export(nn.Linear(3, 2), (SAMPLES,))
    assert all(isinstance(frontend_for(model), TorchExport) for model in (nn.Linear(3, 2), program))


def test_what_no_front_end_reads_is_refused_and_all_that_is_read_is_named(monkeypatch):
    monkeypatch.setitem(FRONTENDS, "weights", FromWeights())
    with pytest.raises(rw.ModelError) as raised:
        frontend_for("resnet18")
    assert all(name in str(raised.value) for name in ("str", "nn.Module", "ExportedProgram", "Weights"))


def test_a_front_end_needs_nothing_of_torch_export(monkeypatch, tmp_path):
    monkeypatch.setitem(FRONTENDS, "weights", FromWeights())
    layer = nn.Linear(3, 2).eval()
    weights = Weights(weight=layer.weight.detach(), bias=layer.bias.detach())
    recipe = quantizing(rounding=rw.rounding.Nearest())
    ours, theirs = (rw.quantize(model, SAMPLES, recipe) for model in (weights, layer))
    assert ours.report.layers[0].name == "layer"
    assert torch.equal(ours(SAMPLES), theirs(SAMPLES))
    ours.save(tmp_path / "model.rw")
    assert torch.equal(rw.load(tmp_path / "model.rw")(SAMPLES), ours(SAMPLES))
    assert torch.equal(ours.program.module()(SAMPLES), ours(SAMPLES))


def test_a_module_takes_what_its_forward_takes_and_tells_where_and_how_large_it_is():
    facts = TorchExport().facts(nn.Sequential(nn.Linear(3, 2, dtype=torch.float64), nn.BatchNorm1d(2)))
    assert facts.signature == Signature(("input",), ("input",))
    assert (facts.device, facts.dtype) == (torch.device("cpu"), torch.float64)
    assert facts.size == 8 * (6 + 2) + 4 * 4 * 2  # and the count of batches, a whole number, is not counted


class Holds(nn.Module):
    """Adds what stands under a name."""

    def __init__(self, name, value):
        super().__init__()
        self.fc, self.name = nn.Linear(3, 3), name
        setattr(self, name, value)

    def forward(self, x):
        value = getattr(self, self.name)
        return self.fc(x) + (value(x) if isinstance(value, nn.Module) else value)


HELD = {
    "child": lambda: nn.Linear(3, 3),
    "parameter": lambda: nn.Parameter(torch.ones(3)),
    "buffer": lambda: nn.Buffer(torch.ones(3)),
    "tensor": lambda: torch.ones(3),
    "child with a tensor": lambda: Holds("inner", torch.ones(3)),
}
OF_GRAPHS = sorted(
    {name for name in set(dir(fx.symbolic_trace(nn.ReLU()))) - set(dir(nn.ReLU())) if not name.startswith("_")}
)


@pytest.mark.parametrize("held", HELD)
def test_tensors_under_names_of_pytorchs_graphs_are_refused(held):
    assert {"graph", "code", "meta", "recompile"} <= set(OF_GRAPHS)
    for name in OF_GRAPHS:
        with raises(rw.ModelError, f"'{name}'", "Rename"):
            rw.quantize(Holds(name, HELD[held]()).eval(), SAMPLES, quantizing(rw.Weights(bits=16)))


def test_a_program_that_holds_tensors_under_such_names_is_refused():
    program = torch.export.export(Holds("graph", nn.Linear(3, 3)).eval(), (SAMPLES,))
    with raises(rw.ModelError, "'graph'", "Rename"):
        rw.quantize(program, SAMPLES)


def test_a_child_without_tensors_may_have_such_a_name():
    model = Holds("graph", nn.ReLU()).eval()
    quantized = rw.quantize(model, SAMPLES, quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    with torch.no_grad():
        torch.testing.assert_close(quantized(SAMPLES), model(SAMPLES), rtol=1e-3, atol=1e-3)
