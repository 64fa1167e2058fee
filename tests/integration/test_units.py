"""Units of several layers, and a pass over two graphs that do not have the same operations."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from facts import raises
from torch import nn

import roundwise as rw
from roundwise.artifacts.emit import emit
from roundwise.engine.rewriting import folded
from roundwise.engine.store import ActivationStore
from roundwise.engine.stream import Stream
from roundwise.engine.tasks import tasks_of_layers
from roundwise.engine.unit import BlockTask
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.unit import Unit
from roundwise.methods.interfaces import BlockSolver
from roundwise.methods.rounding import Rounding
from roundwise.numerics.squares import distance, energy
from roundwise.statistics import BlockSamples

CPU = torch.device("cpu")
NEAREST = rw.Quantize(rw.Weights(bits=2, ranges=rw.ranges.MinMax()), rw.rounding.Nearest())


class Residual(nn.Module):
    """Two layers with a shortcut around them, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head((x + self.second(self.first(x).relu())).relu())


@pytest.fixture
def graph():
    return folded(TorchExport().graph(Residual().eval(), (torch.randn(2, 8),), {}))


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(64, 8)


@dataclass(frozen=True)
class GradientSteps(BlockSolver[BlockSamples]):
    """Learn for all weights of a block whether to round up, by plain gradient steps on the block's output."""

    steps: int = 200
    needs: ClassVar[type] = BlockSamples

    def solve(self, problem, generator):
        floors = {name: grid.in_codes(problem.weights[name]).floor() for name, grid in problem.grids.items()}
        soft = {
            name: (grid.in_codes(problem.weights[name]) - floors[name]).clone().requires_grad_()
            for name, grid in problem.grids.items()
        }
        optimizer = torch.optim.Adam(soft.values(), lr=0.02)
        for _ in range(self.steps):
            inputs, targets = problem.statistics.draw(32, generator)
            with torch.enable_grad():
                up = {name: (part.clamp(0, 1).round() - part).detach() + part for name, part in soft.items()}
                matrices = {name: grid.dequantize(floors[name] + up[name]) for name, grid in problem.grids.items()}
                loss = (problem.forward(matrices, inputs) - targets).square().mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        return {
            name: Rounding(grid.clip(floors[name] + (soft[name].detach() >= 0.5)).to(torch.int32))
            for name, grid in problem.grids.items()
        }


def run(graph, samples, tasks, **more):
    with ActivationStore(1 << 30, CPU) as store:
        batches = [[part] for part in samples.split(16)]
        return Stream(graph, batches, len(samples), tasks, seed=0, store=store, **more).run()


def block_of(graph, *names, end):
    layers = [layer for layer in find_layers(graph) if layer.name in names]
    (output,) = (node for node in graph.operations.nodes if node.name == end)
    return Unit.of_block(graph, "+".join(names), layers, output)


def output_error(graph, weights, samples):
    wanted, found = graph.module()(samples), emit(graph, weights).module()(samples)
    return distance(found, wanted) / energy(wanted)


def test_a_unit_of_two_layers_is_reconstructed_by_gradient_steps(graph, samples):
    tasks = tasks_of_layers(graph, NEAREST)
    block = BlockTask(block_of(graph, "first", "second", end="add"), tuple(tasks[:2]), GradientSteps())
    assert [node.name for node in block.unit.inputs] == ["x"]
    nearest, together = run(graph, samples, tasks), run(graph, samples, [block, tasks[2]])
    assert [weight.layer.name for weight in together.weights] == ["first", "second", "head"]
    first, second, _ = together.reports
    assert first.error == second.error < first.error_nearest
    assert "first+second" in first.note
    assert together.output_error < nearest.output_error
    assert together.output_error == pytest.approx(output_error(graph, together.weights, samples), rel=1e-4)


def test_a_units_forward_is_the_network_between_its_inputs_and_its_output(graph, samples):
    unit = block_of(graph, "first", "second", end="add")
    model = Residual().eval()
    expected = samples + model.second(model.first(samples).relu())
    assert torch.allclose(unit.forward({}, [samples]), expected, atol=1e-6)
    twice = {layer.name: 2 * graph.constants[layer.weight] for layer in unit.layers}
    assert not torch.allclose(unit.forward(twice, [samples]), expected, atol=1e-3)


def test_a_unit_ends_where_everything_goes_through(graph):
    with raises(rw.ModelError, "first+second", "'relu'", "second"):
        block_of(graph, "first", "second", end="relu")
    with raises(rw.ModelError, "head", "'add'"):
        block_of(graph, "head", end="add")
    twice = graph.copy()
    (output,) = (node for node in twice.operations.nodes if node.op == "output")
    (inner,) = (node for node in twice.operations.nodes if node.name == "relu")
    output.args = ((output.args[0][0], inner),)
    with raises(rw.ModelError, "first+second", "'add'", "relu"):
        block_of(twice, "first", "second", end="add")


# --------------------------------------------------------------------------------------------- two graphs


def split(graph, name):
    """The graph with one linear layer as two: W = (U S) Vᵀ. The second half's output is the layer's."""
    edited = graph.copy()
    (layer,) = (layer for layer in find_layers(edited) if layer.name == name)
    left, values, right = torch.linalg.svd(edited.constants[layer.weight].double(), full_matrices=False)
    first = edited.add_constant(f"{name}.right.weight", right.float())
    second = edited.add_constant(f"{name}.left.weight", (left * values).float())
    call = layer.node
    with edited.operations.inserting_before(call):
        inner = edited.operations.call_function(call.target, (call.args[0], first))
    inner.meta["val"] = torch.empty(2, len(values))
    call.args = (inner, second, *call.args[2:])
    edited.prune()
    return edited


@pytest.mark.parametrize("name", ["first", "second", "head"])
def test_a_network_with_a_layer_split_in_two_is_held_to_the_original(graph, samples, name):
    edited = split(graph, name)
    tasks = tasks_of_layers(edited, rw.Quantize(rw.Weights(bits=8), rw.rounding.GramAdaRound()))
    result = run(edited, samples, tasks, reference=graph)
    assert [weight.layer.name for weight in result.weights] == [layer.name for layer in find_layers(edited)]
    wanted, found = graph.module()(samples), emit(edited, result.weights).module()(samples)
    assert result.output_error == pytest.approx(distance(found, wanted) / energy(wanted), rel=1e-3)
    assert result.output_error < 1e-3


def test_errors_count_from_the_reference_and_not_from_the_edited_network(graph, samples):
    edited = split(graph, "second")
    edited.constants["second.left.weight"] = edited.constants["second.left.weight"] * 1.5  # a bad approximation
    sixteen = tasks_of_layers(edited, rw.Quantize(rw.Weights(bits=16), rw.rounding.Nearest()))
    alone, held = run(edited, samples, sixteen), run(edited, samples, sixteen, reference=graph)
    assert alone.output_error < 1e-6
    wanted, found = graph.module()(samples), edited.module()(samples)
    assert held.output_error == pytest.approx(distance(found, wanted) / energy(wanted), rel=1e-3)
    errors = {report.name: report.error for report in held.reports}
    assert errors["first"] < 1e-6 < errors["second.left"]
    assert errors["second.right"] < 1e-6  # it has no counterpart: held to its own float weights


def test_what_both_graphs_compute_alike_runs_once(graph, samples, monkeypatch):
    from roundwise.engine import values

    counts = {}
    real = values.execute

    def counted(node, inputs):
        counts[node.name] = counts.get(node.name, 0) + 1
        return real(node, inputs)

    monkeypatch.setattr(values, "execute", counted)
    edited = split(graph, "head")
    run(edited, samples, (), reference=graph)
    shared, own = counts["linear"], counts["linear_2"]
    assert shared == 1 + 4  # the plan's batch and four batches, once each
    assert own == 2 * shared  # the head of the original, and of the network with the head in two parts
