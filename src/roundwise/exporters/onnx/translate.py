"""From a quantized program to an ONNX graph.

The program has the dialect's operations as operators, so that each is one node.

program ──▶ `torch.onnx`, with the dialect's translations ──▶ weights stored as integers ──▶ optimised
        ──▶ in forms that ONNX Runtime runs right ──▶ named
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument

from roundwise.errors import ExportError
from roundwise.exporters.names import input_names, output_names
from roundwise.exporters.onnx.divisions import divide_safely
from roundwise.exporters.onnx.forms import use_safe_forms
from roundwise.exporters.onnx.operators import translation_table
from roundwise.exporters.onnx.weights import store_weights
from roundwise.targets import Target

OPSET = 21
"""The first opset with 4-bit integers and with scales per block."""


def build_graph(
    program: ExportedProgram, target: Target, axes: Sequence[Mapping[int, str]] = ()
) -> tuple[ir.Model, dict[str, int]]:
    """Translate a quantized program in which the dialect's operations are operators.

    Args:
        program: what to translate.
        target: says in which types codes are stored.
        axes: for each input that is a tensor the names of its dynamic dimensions besides the batch.

    Returns:
        The model, and how many quantized weights it stores in each type, as `{"INT4": 20, "INT8": 1}`.

    Raises:
        ExportError: an operation has no translation, or codes do not fit any type of ONNX.
    """
    _refuse_constant_outputs(program)
    with _quiet():
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                optimize=False,  # comes last, below, when the weights are in their final form
                custom_translation_table=translation_table(target),
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"The model has an operation that ONNX or its exporter does not know: {_first_cause(error)}. Export a "
                f"part of the model without it, or {_way_out(program)}"
            ) from error
        assert translated is not None
        assert translated.exported_program is not None
        model = translated.model
        batch = next((value.shape[0] for value in model.graph.inputs if value.shape), None)
        if isinstance(batch, ir.SymbolicDim):
            translated.rename_axes({batch: "batch"})
        for value, names in zip(model.graph.inputs, axes, strict=False):
            for axis, name in names.items():
                size = value.shape[axis] if value.shape else None
                if isinstance(size, ir.SymbolicDim):
                    translated.rename_axes({size: name})
        stored = store_weights(model, translated.exported_program, target)
        try:
            onnxscript.optimizer.optimize(model)
        except ir.passes.PassError as error:
            raise ExportError(
                f"ONNX's optimizer fails on the model: {_first_cause(error)}. Export a part of the model without that "
                "operation, or give samples of one size and no `dynamic`."
            ) from error
        use_safe_forms(model, target)
        divide_safely(model)
        ir.passes.Sequential(
            passes.DeduplicateInitializersPass(size_limit=2**62),
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.OutputFixPass(),
            # The exporter notes the source line of each operation: paths of the user's machine, and half the file.
            passes.ClearMetadataAndDocStringPass(),
        )(model)
        inputs = [name for name in input_names(program) if name is not None]
        for value, name in zip(model.graph.inputs, inputs, strict=True):
            value.name = name
        for value, name in zip(model.graph.outputs, output_names(program), strict=True):
            value.name = name
        passes.NameFixPass()(model)
    types: dict[str, int] = {}
    for value in stored & set(model.graph.initializers.values()):
        assert value.dtype is not None
        types[value.dtype.name] = types.get(value.dtype.name, 0) + 1
    return model, dict(sorted(types.items()))


def _refuse_constant_outputs(program: ExportedProgram) -> None:
    for spec in program.graph_signature.output_specs:
        if isinstance(spec.arg, ConstantArgument) and spec.arg.value is not None:
            raise ExportError(
                f"The model returns the constant {spec.arg.value!r} among its outputs. ONNX outputs are tensors: wrap "
                "the model so that it returns only those."
            )


def _way_out(program: ExportedProgram) -> str:
    """What else can be done with a model that has no ONNX form."""
    targets = [node.target for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    custom = sorted({target.name() for target in targets if target.namespace not in ("aten", "prim", "roundwise")})
    if not custom:
        return "save the model with `quantized.save` and run it in PyTorch."
    return (
        f"write {', '.join(custom)} in operations of PyTorch. The model runs in PyTorch wherever this custom operation "
        "is registered, and `torch.export.save(quantized.program, …)` saves it (`quantized.save` cannot)."
    )


def _first_cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions, which is the one that says something; its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own notes to itself: what matters is checked afterwards, by running the file."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # PyTorch copies its own tree specifications in a way that it deprecates itself.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated", category=FutureWarning)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
