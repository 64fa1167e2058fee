"""The dialect's operations compute what PyTorch's `quantized_decomposed` operations do, bit for bit, in every form."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from recipes import quantizing
from thirds import in_thirds
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import roundwise
import roundwise as rw
from roundwise.artifacts import dialect
from roundwise.artifacts.guard import Guard, Memory
from roundwise.artifacts.model import Model, versions
from roundwise.artifacts.plain import graph_from_plain, graph_to_plain
from roundwise.artifacts.schema import UnsafeError
from roundwise.errors import FileFormatError
from roundwise.exporters import pt2e
from roundwise.exporters.pt2e import to_quantized_decomposed
from roundwise.frontends.torch_export import TorchExport
from roundwise.targets import TARGETS

FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
RANGES = [
    ((-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1), signed, bits)
    for bits, signed in itertools.product(range(2, 17), (True, False))
]


def code_dtype(bits, signed):
    if bits > 8:
        return torch.int16 if signed else torch.int32
    return torch.int8 if signed else torch.uint8


def same(one, other):
    """Bit for bit: −0.0 is not 0.0."""
    return one.dtype == other.dtype and torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


@pytest.fixture(scope="module")
def decomposed():
    pt2e._register()
    return torch.ops.quantized_decomposed


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scales(*shape):
    return torch.rand(shape) * 10.0 ** torch.randint(-8, 8, shape)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantize_and_dequantize_are_those_of_pytorch(decomposed, dtype):
    for (qmin, qmax), signed, bits in RANGES:
        codes_dtype, scale, zero_point = code_dtype(bits, signed), scales(1).item(), (qmin + qmax) // 2
        grid = (scale, zero_point, qmin, qmax)
        halves = torch.arange(-4, 5) * scale / 2  # in the middle between two codes
        values = torch.cat([torch.randn(100) * scale * qmax, halves, torch.tensor([torch.inf, -torch.inf])]).to(dtype)
        codes = dialect.quantize(values, *grid, codes_dtype)
        assert torch.equal(codes, decomposed.quantize_per_tensor(values.float(), *grid, codes_dtype))
        expected = decomposed.dequantize_per_tensor(codes, *grid, codes_dtype).to(dtype)
        assert same(dialect.dequantize(codes, *grid, dtype), expected)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 0), ((6, 4), 1), ((4, 3, 3, 3), 0), ((4, 3, 3, 3), 1)])
def test_dequantize_per_channel_is_that_of_pytorch(decomposed, dtype, shape, axis):
    for (qmin, qmax), signed, bits in RANGES:
        codes = torch.randint(qmin, qmax + 1, shape).to(code_dtype(bits, signed))
        scale, zero_point = scales(shape[axis]), torch.randint(qmin, qmax + 1, (shape[axis],))
        expected = decomposed.dequantize_per_channel(codes, scale, zero_point, axis, qmin, qmax, codes.dtype)
        found = dialect.dequantize_per_channel(codes, scale, zero_point, axis, qmin, qmax, dtype)
        assert same(found, expected.to(dtype))
        assert found.stride() == expected.stride()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dequantize_per_group_is_that_of_pytorch(decomposed, dtype):
    for (qmin, qmax), signed, bits in RANGES:
        codes = torch.randint(qmin, qmax + 1, (6, 12)).to(code_dtype(bits, signed))
        scale, zero_point = scales(6, 3), torch.randint(qmin, qmax + 1, (6, 3))
        arguments = (scale, zero_point, qmin, qmax, codes.dtype, 4, torch.float32)
        expected = decomposed.dequantize_per_channel_group(codes, *arguments).to(dtype)
        assert same(dialect.dequantize_per_group(codes, scale, zero_point, 4, qmin, qmax, dtype), expected)


EXAMPLES = {
    dialect.QUANTIZE: (torch.randn(4, 6), 0.5, 3, 0, 15, torch.uint8),
    dialect.DEQUANTIZE: (torch.arange(24).view(4, 6).to(torch.int8), 0.5, 3, -128, 127, torch.float16),
    dialect.DEQUANTIZE_PER_CHANNEL: (
        torch.arange(24).view(4, 6).to(torch.int8), torch.rand(6), torch.arange(6), 1, -128, 127, torch.float32,
    ),
    dialect.DEQUANTIZE_PER_GROUP: (
        torch.arange(24).view(4, 6).to(torch.int8), torch.rand(4, 2), torch.ones(4, 2), 3, -128, 127, torch.float32,
    ),
}  # fmt: skip


@pytest.mark.parametrize("operation", dialect.OPERATIONS.values(), ids=dialect.OPERATIONS)
def test_an_operator_and_a_trace_compute_what_the_function_does(operation):
    arguments = EXAMPLES[operation]
    expected = operation.function(*arguments)
    assert same(dialect.operator_for(operation)(*arguments), expected)
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    rest = arguments[len(tensors) :]
    traced = make_fx(lambda *given: operation.function(*given, *rest))(*tensors)
    assert same(traced(*tensors), expected)
    assert {node.target.namespace for node in traced.graph.nodes if node.op == "call_function"} == {"aten"}


def test_exporters_bind_every_operation():
    assert set(pt2e.BINDINGS) == set(dialect.OPERATIONS)
    pytest.importorskip("onnxscript")
    from roundwise.exporters.onnx.operators import translation_table

    operators = {dialect.operator_for(operation) for operation in dialect.OPERATIONS.values()}
    assert all(operators <= set(translation_table(target)) for target in TARGETS.values())


def test_one_file_alone_imports_what_pytorch_is_removing():
    source = Path(roundwise.__file__).parent
    importing = re.compile(r"^\s*(?:import|from)\s+torch\.ao\b", re.MULTILINE)
    files = [path for path in source.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
    assert [str(path.relative_to(source)) for path in files] == ["exporters/pt2e.py"]


# ----------------------------------------------------------------------------------------- in a quantized network


class Net(nn.Module):
    """Layers whose codes have the weight's own shape, and others whose codes are a matrix."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 3, groups=2, padding=1)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        return self.head(self.up(self.conv(x).relu()).mean((2, 3)))


SAMPLES = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
RECIPES = {
    "per channel": quantizing(rounding=rw.rounding.Nearest()),
    "per tensor, unsigned": quantizing(
        rw.Weights(granularity=rw.PerTensor(), symmetric=False), rw.rounding.Nearest(), rewrites=()
    ),
    "per group": quantizing(
        rw.Weights(granularity=rw.PerGroup(9)), rw.rounding.Nearest(), {"head": rw.Weights(granularity=rw.PerGroup(4))}
    ),
    "8-bit activations": quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations()),
}


def quantized(recipe="per channel", dtype=torch.float32):
    return rw.quantize(Net().eval().to(dtype), SAMPLES.to(dtype), RECIPES[recipe])


@pytest.mark.parametrize(("recipe", "dtype"), in_thirds(list(RECIPES), [torch.float32, torch.float16]))
def test_the_form_for_pytorchs_tools_computes_the_same(recipe, dtype, decomposed):
    model = quantized(recipe, dtype)
    program = to_quantized_decomposed(model)
    found = [node.target.namespace for node in program.graph.nodes if node.op == "call_function"]
    mine = [node for node in model.graph.operations.nodes if dialect.operation_of(node) is not None]
    assert found.count("quantized_decomposed") == len(mine) > 0
    assert set(found) == {"aten", "quantized_decomposed"}
    for batch in (1, 5):
        inputs = torch.randn(batch, 3, 6, 6).to(dtype)
        assert torch.equal(program.module()(inputs), model(inputs))


def test_the_form_for_pytorchs_tools_can_be_made_of_a_loaded_model(tmp_path):
    model = quantized("8-bit activations", torch.float16)
    model.save(tmp_path / "net.rw")
    inputs = SAMPLES[:3].half()
    program = to_quantized_decomposed(rw.load(tmp_path / "net.rw"))
    assert torch.equal(program.module()(inputs), model(inputs))


def test_a_pytorch_without_quantized_decomposed_is_an_error_with_a_way_out(monkeypatch):
    model = quantized()
    monkeypatch.setitem(sys.modules, "torch.ao.quantization.fx", None)
    with pytest.raises(rw.ExportError, match=r"quantized_decomposed.*model\.program"):
        to_quantized_decomposed(model)


@pytest.mark.parametrize("recipe", [pytest.param("per channel", marks=pytest.mark.slow), "8-bit activations"])
def test_torch_compile_sees_through_the_operations(recipe):
    model = quantized(recipe)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(SAMPLES), model(SAMPLES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_functions_and_operators_are_two_forms_of_one_graph(recipe):
    model = quantized(recipe)
    with_operators = dialect.with_operators(model.graph)
    assert not any(dialect.operation_of(node) for node in with_operators.operations.nodes)
    assert torch.equal(with_operators.module()(SAMPLES), model(SAMPLES))
    back = dialect.with_functions(with_operators).operations.nodes
    assert [node.target for node in back] == [node.target for node in model.graph.operations.nodes]


# ------------------------------------------------------------------------------------------- weights read off a model


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_weights_of_a_model_are_those_that_its_layers_read(recipe, tmp_path):
    model = quantized(recipe)
    model.save(tmp_path / "net.rw")
    for it in (model, rw.load(tmp_path / "net.rw")):
        assert set(it.weights) == {"conv", "up", "head"} == {layer.name for layer in it.report.layers}
        head = it.weights["head"]
        assert head.codes.shape == (6, 8)
        assert head.qmin <= head.codes.min() <= head.codes.max() <= head.qmax
        graph = it.graph
        (call,) = (node for node in graph.operations.nodes if node.target is torch.ops.aten.linear.default)
        read = fx.Interpreter(it.graph_module).fetch_attr  # constants by name
        values = [read(str(one.target)) if isinstance(one, fx.Node) else one for one in call.args[1].args]
        assert torch.equal(head.dequantize(), dialect.operation_of(call.args[1]).function(*values))


def test_a_layer_called_as_another_ones_weight_keeps_its_whole_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Module()
            self.a.weight = nn.Parameter(torch.randn(4, 4))
            self.weight_codes = nn.Linear(4, 4)

        def forward(self, x):
            return self.weight_codes(nn.functional.linear(x, self.a.weight))

    model = rw.quantize(Odd().eval(), torch.randn(8, 4), RECIPES["per channel"])
    assert set(model.weights) == {layer.name for layer in model.report.layers} == {"a", "weight_codes"}


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        (lambda args: args[:-1], "7 arguments"),
        (lambda args: [*args, 1], "7 arguments"),
        (lambda args: [1.0, *args[1:]], "'codes'"),
        (lambda args: [*args[:3], True, *args[4:]], "'axis'"),
        (lambda args: [*args[:3], 0.5, *args[4:]], "'axis'"),
        (lambda args: [*args[:6], 7], "'dtype'"),
    ],
)
def test_arguments_of_other_types_are_refused_when_a_file_is_read(change, argument):
    graph = quantized().graph
    description = graph_to_plain(graph)
    name = dialect.DEQUANTIZE_PER_CHANNEL.name
    entry = next(entry for entry in description["nodes"] if entry["target"] == name)
    entry["args"]["list"] = change(entry["args"]["list"])
    with pytest.raises(UnsafeError, match=f"{name}.*{argument}|{argument}.*{name}"):
        Guard(graph_from_plain(description, graph.constants), Memory(1 << 20))


def test_a_graph_with_operators_has_no_form_in_a_file(tmp_path):
    model = quantized()
    other = Model(dialect.with_operators(model.graph), model.report, model.recipe, versions())
    with pytest.raises(FileFormatError, match=r"roundwise\.dequantize_per_channel"):
        other.save(tmp_path / "net.rw")
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_calls_the_operators_is_captured_with_them():
    class Coded(nn.Module):
        def forward(self, x):
            operator = dialect.operator_for(dialect.QUANTIZE)
            return operator(x, 0.5, 0, -8, 7, torch.int8)

    graph = dialect.with_functions(TorchExport().graph(Coded().eval(), (torch.randn(4, 3),), {}))
    (node,) = (node for node in graph.operations.nodes if dialect.operation_of(node) is not None)
    assert dialect.operation_of(node) is dialect.QUANTIZE
    assert dialect.QUANTIZE.arguments(node)["qmax"] == 7
