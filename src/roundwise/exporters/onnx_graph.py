"""From a quantized program to an ONNX graph whose weights are integer initialisers.

    torch:  codes, scales, zero points ──▶ quantized_decomposed.dequantize_* ──▶ [permute] ──▶ aten.conv2d, linear, …
    ONNX:   codes, scales, zero points ──▶ DequantizeLinear ───────────────────────────────▶ Conv, Gemm, MatMul, …

`torch.onnx` translates the program. What it makes of a dequantize operation is one byte for each code, scales and zero
points behind Casts, and a Transpose behind that. So each weight is then built anew, from the tensors of the program:

1. The codes go into the narrowest type that holds their range: INT4 and UINT4 (two to a byte) up to 4 bits, then
   INT8, UINT8, INT16, UINT16. 2- and 3-bit codes are stored as 4-bit: opset 21 has nothing narrower.
2. The zero point gets the type of the codes, as ONNX demands; the scale keeps the type of the real numbers.
3. A Transpose, Reshape or Cast that follows is done here, on the codes, where that changes no value; so that runtimes
   find DequantizeLinear right before Conv, Gemm or MatMul, which is the pattern they fuse.
4. A weight that is used several times is stored once.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any, final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import torch
from onnxscript.onnx_opset import opset21
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from roundwise.artifacts.emit import dialect
from roundwise.errors import ExportError

OPSET = 21
"""The first opset with 4-bit integers and with scales per block."""

Array = npt.NDArray[Any]


@final
@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight as ONNX stores it.

    Attributes:
        name: of the codes, in the program.
        codes: integers, in the weight's shape and NumPy's type of their own.
        scale: float32 or float16: no dimension (one scale for all), one (along `axis`), or as many as the codes (then
            `codes.shape[axis]` is a multiple of `scale.shape[axis]` and each scale holds for a block of codes).
        zero_point: integers in the shape of `scale`.
        axis: along which the scale changes; None if there is one scale.
        onnx_type: in which codes and zero point are stored.
    """

    name: str
    codes: Array
    scale: Array
    zero_point: Array
    axis: int | None
    onnx_type: ir.DataType

    @property
    def block_size(self) -> int:
        """How many neighbouring codes along `axis` share a scale; 0 where a scale is not for a block."""
        if self.axis is None or self.scale.ndim <= 1:
            return 0
        return int(self.codes.shape[self.axis] // self.scale.shape[self.axis])

    def transposed(self, order: tuple[int, ...]) -> StoredWeight:
        """The same weight with its dimensions in another order."""
        axis = None if self.axis is None else order.index(self.axis)
        blocks = self.scale.ndim > 1
        return replace(
            self,
            codes=self.codes.transpose(order),
            scale=self.scale.transpose(order) if blocks else self.scale,
            zero_point=self.zero_point.transpose(order) if blocks else self.zero_point,
            axis=axis,
        )

    def reshaped(self, shape: tuple[int, ...]) -> StoredWeight | None:
        """The same weight in another shape; None where the scales would no longer lie along one of its axes."""
        codes = self.codes.reshape(shape)
        if self.axis is None:
            return replace(self, codes=codes)
        if self.scale.ndim > 1:
            return None
        before, size = math.prod(self.codes.shape[: self.axis]), self.codes.shape[self.axis]
        for axis, length in enumerate(codes.shape):
            if length == size and math.prod(codes.shape[:axis]) == before:
                return replace(self, codes=codes, axis=axis)
        return None

    def cast(self, onnx_type: ir.DataType) -> StoredWeight | None:
        """The same weight as real numbers of another type; None where a scale is not exact in it.

        (q − z) · s with an exact s is rounded once, as in `(float32 product).to(float16)`: both give the same number.
        """
        if onnx_type not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return None
        scale = self.scale.astype(onnx_type.numpy())
        return replace(self, scale=scale) if np.array_equal(scale.astype(np.float32), self.scale) else None


def build_graph(program: ExportedProgram) -> tuple[ir.Model, dict[str, int]]:
    """Translate a quantized program.

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
                custom_translation_table={
                    dialect.dequantize_per_channel_group.default: _dequantize_per_channel_group,
                    dialect.quantize_per_tensor.default: _quantize_per_tensor,
                    dialect.dequantize_per_tensor.default: _dequantize_per_tensor,
                },
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(
                f"The model has an operation that ONNX or its exporter does not know: {_first_cause(error)}. Export a "
                "part of the model without it, or save the model with `quantized.save` and run it in PyTorch."
            ) from error
        assert translated is not None
        assert translated.exported_program is not None
        model = translated.model
        batch = next((value.shape[0] for value in model.graph.inputs if value.shape), None)
        if isinstance(batch, ir.SymbolicDim):
            translated.rename_axes({batch: "batch"})
        stored = _store_weights(model, translated.exported_program)
        onnxscript.optimizer.optimize(model)
        ir.passes.Sequential(
            passes.DeduplicateInitializersPass(size_limit=2**62),
            passes.CommonSubexpressionEliminationPass(),
            passes.RemoveUnusedNodesPass(),
            passes.OutputFixPass(),
            # The exporter notes the source line of each operation: paths of the user's machine, and half the file.
            passes.ClearMetadataAndDocStringPass(),
        )(model)
        names = [name for name in input_names(program) if name is not None]
        for value, name in zip(model.graph.inputs, names, strict=True):
            value.name = name
        for value, name in zip(model.graph.outputs, output_names(program), strict=True):
            value.name = name
        passes.NameFixPass()(model)
    types: dict[str, int] = {}
    for value in stored & set(model.graph.initializers.values()):
        assert value.dtype is not None
        types[value.dtype.name] = types.get(value.dtype.name, 0) + 1
    return model, dict(sorted(types.items()))


def input_names(program: ExportedProgram) -> tuple[str | None, ...]:
    """The ONNX input of each leaf of the model's arguments, in order; None where the leaf is not a tensor."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    return tuple(spec.arg.name if isinstance(spec.arg, TensorArgument) else None for spec in specs)


def output_leaves(program: ExportedProgram) -> tuple[int, ...]:
    """Which leaves of the model's result are ONNX outputs: all but constants such as None."""
    specs = [spec for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    return tuple(i for i, spec in enumerate(specs) if not isinstance(spec.arg, ConstantArgument))


def output_names(program: ExportedProgram) -> tuple[str, ...]:
    """A name for each ONNX output: its place in the model's result.

    A single tensor is `output`, the third of a tuple `output_2`, `{"logits": …}` is `logits`.
    """
    spec = program.call_spec.out_spec
    assert spec is not None
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    taken = set(input_names(program))
    names: list[str] = []
    for leaf in output_leaves(program):
        keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in paths[leaf][0]]
        name = "_".join(keys if keys and not keys[0].isdigit() else ["output", *keys])
        while name in taken:
            name += "_output"
        taken.add(name)
        names.append(name)
    return tuple(names)


def _refuse_constant_outputs(program: ExportedProgram) -> None:
    for spec in program.graph_signature.output_specs:
        if isinstance(spec.arg, ConstantArgument) and spec.arg.value is not None:
            raise ExportError(
                f"The model returns the constant {spec.arg.value!r} among its outputs. ONNX outputs are tensors: wrap "
                "the model so that it returns only those."
            )


def _store_weights(model: ir.Model, program: ExportedProgram) -> set[ir.Value]:
    """Replace every dequantized constant of the graph by a `StoredWeight`; returns the initialisers that hold codes."""
    constants = _constants(program)
    values = {output.name: output for node in model.graph for output in node.outputs}
    first_of: dict[Any, ir.Value] = {}  # dequantize operations that give the same weight → the first of them
    weights: list[tuple[ir.Value, StoredWeight]] = []
    for node in program.graph.nodes:
        if node.target not in _DEQUANTIZE or node.args[0].name not in constants:
            continue
        value = values[node.name]
        arguments = [constants[a.name][1] if isinstance(a, torch.fx.Node) else a for a in node.args]
        key = (node.target, *(_identity(a) for a in arguments), *sorted(node.kwargs.items()))
        if key in first_of:
            ir.convenience.replace_all_uses_with(value, first_of[key], replace_graph_outputs=True)
            continue
        first_of[key] = value
        weights.append((value, _read_weight(constants[node.args[0].name][0], node.target, arguments)))
    return {_insert_weight(model.graph, value, weight) for value, weight in weights}


def _insert_weight(graph: ir.Graph, value: ir.Value, weight: StoredWeight) -> ir.Value:
    """Put DequantizeLinear in the place of `value`; returns the initialiser of the codes."""
    replaced = [value]
    while (following := _absorb(weight, replaced)) is not None:
        weight, replaced = following
    name = _free_name(graph, weight.name.removesuffix("_codes"))
    before = value.producer()
    assert before is not None
    initializers = [
        ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        for tensor in (
            _tensor(weight.codes, weight.onnx_type, name),
            ir.Tensor(np.array(weight.scale, order="C"), name=f"{name}.scale"),
            _tensor(weight.zero_point, weight.onnx_type, f"{name}.zero_point"),
        )
    ]
    for initializer in initializers:
        graph.register_initializer(initializer)
    attributes = {} if weight.axis is None else {"axis": weight.axis}
    if weight.block_size:
        attributes["block_size"] = weight.block_size
    node = ir.node("DequantizeLinear", initializers, attributes, name=f"{name}.dequantize")
    (real,) = node.outputs
    real.name = f"{name}.dequantized"
    real.shape = ir.Shape(weight.codes.shape)
    real.type = ir.TensorType(ir.DataType.from_numpy(weight.scale.dtype))
    graph.insert_before(before, node)
    for old in replaced:
        ir.convenience.replace_all_uses_with(old, real, replace_graph_outputs=True)
    return initializers[0]


def _absorb(weight: StoredWeight, values: list[ir.Value]) -> tuple[StoredWeight, list[ir.Value]] | None:
    """Do on the codes what every user of the weight does next to it; None where users differ or it cannot be done."""
    users = [user for value in values for user in value.consumers()]
    if not users or any(value.is_graph_output() for value in values):
        return None
    results = [_apply(weight, user) for user in users]
    settings = {(user.op_type, str(user.attributes), str(user.outputs[0].shape)) for user in users}
    if results[0] is None or len(settings) > 1:
        return None
    return results[0], [user.outputs[0] for user in users]


def _apply(weight: StoredWeight, user: ir.Node) -> StoredWeight | None:
    """The weight after one operation; None where that is not a change of layout or type, or changes a value."""
    match user.op_type:
        case "Identity":
            return weight
        case "Transpose":
            return weight.transposed(tuple(user.attributes["perm"].as_ints()))
        case "Reshape":
            shape = user.outputs[0].shape
            return weight.reshaped(shape.numpy()) if shape is not None and shape.is_static() else None
        case "Cast":
            return weight.cast(ir.DataType(user.attributes["to"].as_int()))
    return None


_DEQUANTIZE = (
    dialect.dequantize_per_tensor.default,
    dialect.dequantize_per_channel.default,
    dialect.dequantize_per_channel_group.default,
)


def _read_weight(name: str, target: Any, arguments: list[Any]) -> StoredWeight:
    """The weight that a dequantize operation of the program stands for."""
    codes = arguments[0].numpy(force=True)
    axis: int | None = None
    if target is _DEQUANTIZE[0]:
        _, scale, zero_point, qmin, qmax = arguments[:5]
        scale, zero_point = np.float32(scale).reshape(()), np.int64(zero_point).reshape(())
    else:
        scale = arguments[1].to(torch.float32).numpy(force=True)
        zero_point = np.zeros(scale.shape, np.int64) if arguments[2] is None else arguments[2].numpy(force=True)
        if target is _DEQUANTIZE[1]:
            axis, qmin, qmax = arguments[3:6]
            axis = range(codes.ndim)[axis]  # counts from the end if negative
        else:
            axis, (qmin, qmax) = 1, arguments[3:5]
            scale, zero_point = scale.reshape(len(codes), -1), zero_point.reshape(len(codes), -1)
    lowest = min(codes.min(initial=qmin), zero_point.min(initial=qmin))
    highest = max(codes.max(initial=qmax), zero_point.max(initial=qmax))
    if lowest < qmin or highest > qmax:
        raise ExportError(
            f"'{name}' has codes or zero points from {lowest} to {highest}, outside of its grid, {qmin} to {qmax}: the "
            "model is damaged. Quantize it again."
        )
    for onnx_type, (smallest, largest) in _RANGES.items():
        if smallest <= qmin and qmax <= largest:
            return StoredWeight(name, codes, scale, zero_point, axis, onnx_type)
    raise ExportError(f"'{name}' has codes from {qmin} to {qmax}; the widest that ONNX dequantizes here have 16 bits.")


_RANGES = {
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 2**16 - 1),
    ir.DataType.INT16: (-(2**15), 2**15 - 1),
}
"""Smallest and largest code of each type that DequantizeLinear takes, narrowest first."""


def _tensor(values: Array, onnx_type: ir.DataType, name: str) -> ir.Tensor[Array]:
    """An initialiser's content; 4-bit integers are packed two to a byte when it is written."""
    return ir.Tensor(np.array(values, onnx_type.numpy(), order="C"), dtype=onnx_type, name=name)


def _constants(program: ExportedProgram) -> dict[str, tuple[str, torch.Tensor]]:
    """For each placeholder of the program that holds a constant: its name in the model, and the tensor."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.constants, **program.state_dict}
    return {placeholder: (name, tensors[name]) for placeholder, name in names.items()}


def _identity(argument: Any) -> Any:
    """Equal for the same tensor, also by another name; other arguments as they are."""
    if not isinstance(argument, torch.Tensor):
        return argument
    return argument.data_ptr(), argument.dtype, tuple(argument.shape), argument.stride()


def _free_name(graph: ir.Graph, name: str) -> str:
    """A name that no initialiser has."""
    return next(free for free in chain([name], (f"{name}_{i}" for i in count(1))) if free not in graph.initializers)


def _dequantize_per_channel_group(
    codes: Any,
    scales: Any,
    zero_points: Any,
    qmin: int,  # noqa: ARG001  # the signature is the operation's
    qmax: int,  # noqa: ARG001
    dtype: int,
    group_size: int = 128,
    output_dtype: int = 1,  # noqa: ARG001
) -> Any:
    """The translation that the exporter lacks. It holds the graph together until the weight is stored."""
    return opset21.DequantizeLinear(codes, scales, opset21.Cast(zero_points, to=dtype), axis=1, block_size=group_size)


def _quantize_per_tensor(
    values: Any,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: int,  # noqa: ARG001  # the signature is the operation's
) -> Any:
    """An activation's codes. QuantizeLinear saturates at the ends of its type; narrower grids are clipped before."""
    if qmax - qmin not in (2**8 - 1, 2**16 - 1):
        low, high = (_constant((end - zero_point) * scale, ir.DataType.FLOAT) for end in (qmin, qmax))
        values = opset21.Clip(values, low, high)
    return opset21.QuantizeLinear(values, *_scale_and_zero_point(scale, zero_point, qmin, qmax))


def _dequantize_per_tensor(
    codes: Any,
    scale: float,
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: int,  # noqa: ARG001
    out_dtype: int = 1,  # noqa: ARG001
) -> Any:
    """Of an activation; a weight's is replaced when the weight is stored."""
    return opset21.DequantizeLinear(codes, *_scale_and_zero_point(scale, zero_point, qmin, qmax))


def _scale_and_zero_point(scale: float, zero_point: int, qmin: int, qmax: int) -> tuple[Any, Any]:
    """Of an activation, whose codes are counted from 0 and take 8 or 16 bits.

    Fewer have no kernels in runtimes; and where codes are signed ONNX Runtime 1.31 cannot move QuantizeLinear through
    other operations (its issue 25526). Codes and zero point moved by the same number stand for the same real numbers.
    """
    onnx_type = ir.DataType.UINT8 if qmax - qmin < 2**8 else ir.DataType.UINT16
    return _constant(scale, ir.DataType.FLOAT), _constant(zero_point - qmin, onnx_type)


def _constant(value: float, onnx_type: ir.DataType) -> Any:
    return opset21.Constant(value=ir.serde.serialize_tensor(ir.Tensor(np.array(value, onnx_type.numpy()))))


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
