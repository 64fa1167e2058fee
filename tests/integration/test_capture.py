"""Every architecture of the zoo is captured, brought into normal form, folded and quantized without being rewritten."""

import inspect
from typing import NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from facts import raises, warns
from recipes import quantizing
from thirds import in_thirds
from torch import Tensor, nn
from torch.export import ExportedProgram
from zoo import CASES

import roundwise as rw
from roundwise.engine.rewriting import folded as rewrite
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.normalize import normalize

NAMES = sorted(CASES)


class Captured(NamedTuple):
    """A model of the zoo, captured once for the tests of it."""

    name: str
    model: nn.Module
    whole: rw.Network | None
    graph: Graph


def samples_of(model, args, kwargs):
    return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments) if kwargs else args


@pytest.fixture(scope="module", params=NAMES)
def captured(request):
    case = CASES[request.param]
    model = case.build()
    torch.manual_seed(1)
    args, kwargs = case.inputs(2)
    whole = None if request.param == "VariadicInputs" else rw.capture(model, samples_of(model, args, kwargs))
    graph = TorchExport().graph(model, args, kwargs) if whole is None else whole.graph
    return Captured(request.param, model, whole, rewrite(graph))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own, where it copies a program
@pytest.mark.parametrize(
    "name", in_thirds(["Residual", "Reused", "Convolutions", "Branches", "Volume3d", "DataclassOutput"])
)
def test_what_is_pure_already_gives_the_same_graph_as_when_it_is_made_so(name, monkeypatch):
    case = CASES[name]
    args, kwargs = case.inputs(3)
    made = []
    monkeypatch.setattr(ExportedProgram, "run_decompositions", counting(made, ExportedProgram.run_decompositions))
    as_it_is = normalize(TorchExport().graph(case.build(), args, kwargs))
    assert made == []
    shapes = pytree.tree_map(lambda _: {0: torch.export.Dim.DYNAMIC}, (args, kwargs))
    program = torch.export.export(case.build(), args, kwargs, dynamic_shapes=(*shapes[0], *shapes[1].values()))
    made_pure = normalize(TorchExport().graph(program.run_decompositions({}), args, kwargs))
    assert targets(as_it_is) == targets(made_pure)


def test_batch_norm_that_would_write_its_statistics_is_not_taken_as_pure():
    class Updates(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x):
            norm = self.norm
            return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True)

    with raises(rw.CaptureError, "'norm.running_mean'", "test_capture.py"):
        TorchExport().graph(Updates().eval(), (torch.randn(4, 2, 3, 3),), {})


def counting(calls, function):
    def counted(*args, **kwargs):
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return counted


def targets(graph):
    """The operations in order, a reshape under its plainest name; what computes a size for one does not count."""
    names = [str(node.target) for node in graph.operations.nodes if node.op == "call_function"]
    return [name.replace("flatten.using_ints", "reshape.default") for name in names if "sym_size" not in name]


def tensors(outputs):
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def test_the_graph_gives_the_models_outputs_at_any_batch_size(captured):
    run = captured.graph.module()
    # A batch-norm that takes its statistics from the batch refuses a single sample, in the model as well.
    for batch in (3, 5) if captured.name == "BatchNorms" else (1, 3):
        torch.manual_seed(batch)
        args, kwargs = CASES[captured.name].inputs(batch)
        with torch.no_grad():
            expected, actual = captured.model(*args, **kwargs), run(*args, **kwargs)
        assert pytree.tree_structure(expected) == pytree.tree_structure(actual)
        for one, other in zip(tensors(expected), tensors(actual), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_the_layers_are_found_under_their_names(captured):
    assert tuple(layer.name for layer in find_layers(captured.graph)) == CASES[captured.name].layers


@pytest.mark.parametrize("captured", in_thirds(NAMES, start=2), indirect=True)
def test_more_bits_bring_the_outputs_nearer(captured):
    if captured.whole is None:
        pytest.skip("*args together with names have no form as a calibration batch")
    torch.manual_seed(2)
    samples = samples_of(captured.model, *CASES[captured.name].inputs(8))
    errors = []
    for bits in (3, 8):
        recipe = quantizing(weights=rw.Weights(bits=bits), rounding=rw.rounding.Nearest())
        errors.append(rw.quantize(captured.whole, samples, recipe).report.output_error)
    assert errors[1] < max(errors[0], 1e-9)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), Decision()

    def forward(self, x):
        return self.head(self.backbone(x))


class Decision(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


def test_control_flow_on_values_is_an_error_with_the_place_and_the_way_out():
    model = Branching()
    model.head.train()
    model.backbone.eval()
    with (
        warns(UserWarning, "model.eval()"),
        raises(rw.CaptureError, "test_capture.py", "'head'", "rw.quantize(model.backbone"),
    ):
        rw.quantize(model, torch.randn(8, 4))
    assert model.head.training
    assert not model.backbone.training


def test_a_decision_by_the_number_of_samples_is_an_error_that_says_so():
    class ByBatch(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.shape[0] > 4 else 2 * self.fc(x)

    with raises(rw.CaptureError, "x.shape[0] > 4", "torch.export.export(model, (samples,))"):
        rw.quantize(ByBatch().eval(), torch.randn(8, 4))


def test_a_model_that_writes_to_its_own_buffer_is_an_error():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.fc(x)

    with raises(rw.CaptureError, "'calls'", "rw.quantize(model.fc"):
        rw.quantize(Counting().eval(), torch.randn(8, 4))


def test_overwriting_what_dropout_handed_on_is_an_error_that_says_so():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.drop = nn.Linear(4, 4), nn.Dropout()

        def forward(self, x):
            x = self.fc(x)
            y = self.drop(x)
            y += 1
            return x + y

    with raises(rw.CaptureError, "dropout", "rw.quantize(model.fc"):
        rw.quantize(Overwrites().eval(), torch.randn(8, 4))


def test_an_exported_program_is_quantized_like_its_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    samples = torch.randn(8, 3, 6, 6)
    program = torch.export.export(model, (samples[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    recipe = quantizing(rounding=rw.rounding.Nearest())
    torch.testing.assert_close(
        rw.quantize(program, samples, recipe)(samples), rw.quantize(model, samples, recipe)(samples)
    )


class InPlace(nn.Module):
    """A convolution, and operations that overwrite what it gave, or a part of it, as `way` says."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.bn, self.way = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), way

    def forward(self, x):
        return self.way(self.bn(self.conv(x)), x)


def overwrites_half(y, x):
    y[:, :2].relu_()
    return y


def reads_it_again(y, x):
    z = y.relu_()
    return y + z


def overwrites_an_alias(y, x):
    z = y.view(-1, 4)
    z.mul_(2)
    return y


def adds_a_wider_dtype(y, x):
    return y.half().add_(x.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("way", "known"),
    [
        (lambda y, x: y.relu_(), True),
        (lambda y, x: nn.functional.hardswish(y, inplace=True).add_(x.mean(1, keepdim=True)).relu_(), True),
        (lambda y, x: y.mul(2).sub_(1), False),
        (lambda y, x: (y + 1).mul_(y).sigmoid_(), True),
        (overwrites_half, False),
        (reads_it_again, True),
        (overwrites_an_alias, False),
        (adds_a_wider_dtype, False),
    ],
)
def test_in_place_operations_become_pure_ones_and_pytorch_is_asked_only_where_they_are_not_known(
    way, known, monkeypatch
):
    model, inputs = InPlace(way).eval(), torch.randn(2, 2, 4, 4)
    made = []
    monkeypatch.setattr(ExportedProgram, "run_decompositions", counting(made, ExportedProgram.run_decompositions))
    graph = TorchExport().graph(model, (inputs,), {})
    assert made == ([] if known else ["run_decompositions"])
    assert not any("_." in str(node.target) for node in graph.operations.nodes)
    with torch.no_grad():
        for one, other in zip(tensors(model(inputs)), tensors(graph.module()(inputs)), strict=True):
            torch.testing.assert_close(other, one)
