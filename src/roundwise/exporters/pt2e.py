"""A quantized model for PyTorch's own quantization tools ("PT2E": `torchao`, the Inductor's lowering, ExecuTorch).

These tools look for operations of the namespace `quantized_decomposed`. PyTorch registers them in a module of
`torch.ao.quantization`, which is deprecated and will be removed (pytorch/ao#2259). So this form of a model is made on
request only, and this file is the only one that imports that module.

`quantized_decomposed` computes in float32 only. In networks of another dtype, conversions stand before and after its
operations.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.export import ExportedProgram

from roundwise.artifacts import dialect
from roundwise.artifacts.model import Model
from roundwise.artifacts.program import export_program
from roundwise.errors import ExportError
from roundwise.graph.graph import Graph

aten = torch.ops.aten

BINDINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    dialect.QUANTIZE.name: (
        "quantize_per_tensor",
        ("values", "scale", "zero_point", "qmin", "qmax", "dtype of codes"),
    ),
    dialect.DEQUANTIZE.name: (
        "dequantize_per_tensor",
        ("codes", "scale", "zero_point", "qmin", "qmax", "dtype of codes"),
    ),
    dialect.DEQUANTIZE_PER_CHANNEL.name: (
        "dequantize_per_channel",
        ("codes", "scale", "zero_point", "axis", "qmin", "qmax", "dtype of codes"),
    ),
    dialect.DEQUANTIZE_PER_GROUP.name: (
        "dequantize_per_channel_group",
        ("codes", "scale", "zero_point", "qmin", "qmax", "dtype of codes", "size", "float32"),
    ),
}
"""For each operation of the dialect: its name in `quantized_decomposed`, and its arguments there, in order."""


def to_quantized_decomposed(model: Model) -> ExportedProgram:
    """The model as a program in which quantizers are operations of `quantized_decomposed`.

    It computes the same as the model, bit for bit, with the same inputs and any batch size.

    Raises:
        ExportError: PyTorch cannot export the graph, or this PyTorch has no `quantized_decomposed` any more.

    Example:
        >>> import roundwise as rw
        >>> layers = torch.nn.Sequential(torch.nn.Linear(8, 4)).eval()
        >>> quantized = rw.quantize(layers, torch.randn(16, 8), rw.Quantize(rounding=rw.rounding.Nearest()))
        >>> program = to_quantized_decomposed(quantized)
        >>> [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        ['quantized_decomposed.dequantize_per_channel.default', 'aten.linear.default']
    """
    _register()
    graph = model.graph.copy()
    for node in list(graph.operations.nodes):
        operation = dialect.operation_of(node)
        if operation is not None:
            with graph.operations.inserting_before(node):
                node.replace_all_uses_with(_translate(graph, node, operation))
    graph.prune()
    return export_program(graph, model.device)


def _translate(graph: Graph, node: fx.Node, operation: dialect.Operation) -> fx.Node:
    """Add the operation of `quantized_decomposed` that computes what a node does."""
    call = graph.operations.call_function
    arguments, quantizes = operation.arguments(node), operation == dialect.QUANTIZE
    dtype = _dtype_of_values(node) if quantizes else arguments["dtype"]
    if quantizes and dtype != torch.float32:
        arguments["values"] = call(aten.to.dtype, (arguments["values"], torch.float32))
    arguments["dtype of codes"] = arguments["dtype"] if quantizes else _dtype_of_codes(graph, arguments["codes"])
    arguments["float32"] = torch.float32
    name, order = BINDINGS[operation.name]
    target = getattr(torch.ops.quantized_decomposed, name).default
    result = call(target, tuple(arguments[argument] for argument in order))
    return result if quantizes or dtype == torch.float32 else call(aten.to.dtype, (result, dtype))


def _dtype_of_values(node: fx.Node) -> torch.dtype:
    """The dtype of what a quantize operation reads: what is read from its codes has the same."""
    reader = next(iter(node.users))
    dtype: torch.dtype = dialect.DEQUANTIZE.arguments(reader)["dtype"]
    return dtype


def _dtype_of_codes(graph: Graph, codes: fx.Node) -> torch.dtype:
    """The dtype of codes: those of a weight are a constant, those of an activation come from a translated node."""
    constant = graph.constant(codes)
    dtype: torch.dtype = codes.args[-1] if constant is None else constant.dtype  # type: ignore[assignment]
    return dtype


def _register() -> None:
    try:
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  Importing it registers the operations.
    except ImportError as error:
        raise ExportError(
            f"PyTorch {torch.__version__} has no module torch.ao.quantization.fx._decomposed, which registers the "
            "operations `quantized_decomposed`. Install an earlier PyTorch, or use `model.program`, which computes the "
            "same with plain ATEN operations."
        ) from error
