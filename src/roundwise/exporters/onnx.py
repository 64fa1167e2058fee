"""A quantized model as an ONNX file, checked in ONNX Runtime before it appears.

    program ──▶ graph (`onnx_graph`) ──▶ temporary file ──▶ runs like the model (`onnx_verify`)? ──▶ in place

The weights are integer constants behind DequantizeLinear, the "QDQ" form that ONNX Runtime, TensorRT, OpenVINO and
others read: up to 4 bits as INT4 or UINT4, half a byte each.

ONNX Runtime keeps the weights of convolutions small in memory: it dequantizes them anew in every run, and leaves out
the optimisations that need constant weights. With the session setting `session.disable_quant_qdq` at "1" it
dequantizes them once, when it loads the file: float memory, float speed (MobileNetV2 on a CPU: a third of the time).
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from roundwise.errors import ExportError
from roundwise.recipe.recipe import Recipe
from roundwise.wording import human_bytes

if TYPE_CHECKING:  # both need the optional packages
    import onnx_ir

    from roundwise.exporters.onnx_verify import OutputDifference

LARGEST_SINGLE_FILE = 2**31 - 2**24
"""Bytes of constants from which on they go to a file of their own: an ONNX file proper must stay below 2 GiB."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Exportable(Protocol):
    """What an export needs of a `Model`."""

    @property
    def program(self) -> ExportedProgram:
        """The network, with weights as codes behind dequantize operations."""

    recipe: Recipe
    samples: Arguments | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs that the file must reproduce."""

    def with_float_activations(self) -> Exportable:
        """The same weights, without quantizers between operations."""

    def on_cpu(self) -> Exportable:
        """The same on the CPU, where ONNX Runtime is to compute alike; itself if it is there."""


@final
@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file that was written, run and found to agree with the model.

    Attributes:
        path: the file.
        bytes: its size, with that of `<path>.data` where the weights did not fit into one file.
        max_difference: largest absolute difference from the model's outputs, ONNX Runtime computing in float.
        relative_difference: largest difference relative to the output's largest magnitude, likewise.
        outputs: these figures for each output, with predicted classes.
        outputs_of_weights: the same for a file without the quantizers of activations, made only to judge the weights
            alone, strictly; empty where activations are not quantized.
        default_outputs: the same as ONNX Runtime runs the file by default. Where weights feed a MatMul it rounds that
            layer's inputs to 8 bits, unless the session sets `session.qdq_matmulnbits_accuracy_level` to "0"; where
            activations are quantized it uses integer kernels that round their results once more.
        verified_on: on which inputs the figures were found.
        opset: of the file.
        weight_types: how many quantized weight tensors are stored in each ONNX type.
    """

    path: Path
    bytes: int
    max_difference: float
    relative_difference: float
    outputs: tuple[OutputDifference, ...]
    outputs_of_weights: tuple[OutputDifference, ...]
    default_outputs: tuple[OutputDifference, ...]
    verified_on: str
    opset: int
    weight_types: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data: dicts, lists, strings and numbers."""
        return {**dataclasses.asdict(self), "path": str(self.path)}

    def __str__(self) -> str:
        types = ", ".join(f"{count} × {name}" for name, count in self.weight_types.items()) or "none"
        lines = [
            f"{self.path}: {human_bytes(self.bytes)}, opset {self.opset}, quantized weights {types}",
            f"checked in ONNX Runtime on {self.verified_on}:",
            *(f"  {output}" for output in self.outputs),
        ]
        if self.outputs_of_weights:
            lines += ["with activations left in float:", *(f"  {output}" for output in self.outputs_of_weights)]
        if self.default_outputs != self.outputs:
            lines += [
                "note: with its default settings ONNX Runtime rounds elsewhere too (the inputs of MatMul layers to 8",
                "bits, the results of integer kernels), and then",
                *(f"  {output}" for output in self.default_outputs),
                "  Graph optimisations switched off (where activations are quantized), or the session entry",
                '  "session.qdq_matmulnbits_accuracy_level" at "0" (where weights feed a MatMul), give those above.',
            ]
        return "\n".join(lines)


def export(
    quantized: Exportable,
    path: str | os.PathLike[str],
    *,
    samples: Tensor | Arguments | None = None,
    tolerance: float | None = None,
) -> OnnxExport:
    """Write a quantized model as an ONNX file, and prove that it computes the same.

    The file is written under a temporary name beside `path`, run in ONNX Runtime at several batch sizes, compared with
    the model's own outputs, and only then takes its place, over an earlier file of that name. Whatever goes wrong,
    nothing half-written stays, and an earlier file stays as it was.

    Args:
        quantized: the result of `quantize` or `load`.
        path: where to; ends in `.onnx`. Constants beyond 2 GiB go to `<path>.data` beside it.
        samples: inputs to compare on: a tensor, or `(positional inputs, inputs by name)`. None takes the calibration
            samples that the model carries, and random numbers where it carries none because it was loaded from a file.
        tolerance: the largest difference that passes, relative to an output's largest magnitude. None takes 1e-4, or
            5e-3 for a float16 model; where activations are quantized that is what passes without their quantizers, and
            with them what the model's own sensitivity explains. `onnx_verify` says why.

    Raises:
        ExportError: the packages are missing, the path cannot be written to, an operation has no ONNX form, or the file
            does not agree with the model.

    Example:
        >>> import roundwise as rw  # doctest: +SKIP
        >>> print(rw.export(quantized, "model.onnx"))  # doctest: +SKIP
        model.onnx: 147.1 KiB, opset 21, quantized weights 20 × INT4
        checked in ONNX Runtime on 8 calibration samples, in batches of 8, 2, 1:
          'output' differs by at most 3.8e-06 (4.1e-07 relative)
    """
    target = _writable(path)
    _require_packages()
    if not hasattr(quantized, "on_cpu"):
        raise ExportError(
            f"what is to be exported is a {type(quantized).__name__}; it must be the result of `quantize` or `load`."
        )
    from roundwise.exporters import onnx_graph, onnx_verify

    quantized = quantized.on_cpu()
    program = quantized.program
    _refuse_bfloat16(program)
    source = "given samples" if samples is not None else "calibration samples"
    if isinstance(samples, Tensor):
        samples = ((samples,), {})
    model, weight_types = onnx_graph.build_graph(program)
    _describe(model, quantized.recipe)
    shown: Arguments | None = pytree.tree_map_only(Tensor, Tensor.cpu, samples or quantized.samples)
    of_weights: tuple[OutputDifference, ...] = ()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            if onnx_verify.quantizes_activations(program):
                plain = quantized.with_float_activations()
                alone, _ = onnx_graph.build_graph(plain.program)
                path = _write(alone, Path(folder) / f"weights-{target.name}")[0]
                of_weights = onnx_verify.verify(path, plain, plain.program, shown, source, tolerance).outputs
            written = _write(model, Path(folder) / target.name)
            checked = onnx_verify.verify(written[0], quantized, program, shown, source, tolerance)
            size = sum(file.stat().st_size for file in written)
            for file in reversed(written):  # the file proper last: while it is not there, nobody reads its data
                file.replace(target.with_name(file.name))
    except OSError as error:
        raise ExportError(f"Writing '{target}' failed: {error}. Nothing was kept.") from error
    return OnnxExport(
        path=target,
        bytes=size,
        max_difference=max((output.max_difference for output in checked.outputs), default=0.0),
        relative_difference=max((output.relative_difference for output in checked.outputs), default=0.0),
        outputs=checked.outputs,
        outputs_of_weights=of_weights,
        default_outputs=checked.default_outputs,
        verified_on=checked.verified_on,
        opset=onnx_graph.OPSET,
        weight_types=weight_types,
    )


def _write(model: onnx_ir.Model, path: Path) -> list[Path]:
    """Write and check the file, and the one for its data if it is large; returns both, the file proper first."""
    import onnx
    import onnx_ir

    constants = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    data = path.with_name(f"{path.name}.data") if constants > LARGEST_SINGLE_FILE else None
    onnx_ir.save(model, path, external_data=data and data.name)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported graph is not valid ONNX: {error} Please report it with the model.") from error
    return [path] if data is None else [path, data]


def _describe(model: onnx_ir.Model, recipe: Recipe) -> None:
    model.producer_name, model.producer_version = "roundwise", version("roundwise")
    model.metadata_props["roundwise.version"] = version("roundwise")
    model.metadata_props["roundwise.recipe.settings"] = json.dumps(recipe.as_dict())


def _writable(path: str | os.PathLike[str]) -> Path:
    """The path, if a file of that name can be written."""
    target = Path(path)
    if target.suffix != ".onnx":
        raise ExportError(f"'{target}' does not end in '.onnx', by which other tools know the format: add it.")
    if target.is_dir():
        raise ExportError(f"'{target}' is a folder; give the name of a file.")
    if not target.parent.is_dir():
        raise ExportError(f"There is no folder '{target.parent}' to write '{target.name}' into: create it first.")
    if not os.access(target.parent, os.W_OK):
        raise ExportError(f"The folder '{target.parent}' cannot be written to: choose another, or ask for permission.")
    return target


def _require_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ExportError(
            f'An export to ONNX needs {", ".join(missing)}, not installed here. Run: pip install "roundwise[onnx]"'
        )


def _refuse_bfloat16(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype is torch.bfloat16:
            raise ExportError(
                f"'{node.name}' is bfloat16, in which ONNX Runtime on a CPU has no convolutions or matrix products "
                "(and ONNX opset 21 no convolutions). Quantize `model.float()` or `model.half()` and export that."
            )
