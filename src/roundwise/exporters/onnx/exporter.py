"""A quantized model as an ONNX file, checked in ONNX Runtime before it appears.

    program ──▶ graph (`translate`) ──▶ temporary file ──▶ runs like the model (`check`)? ──▶ in place

The weights are integer constants behind DequantizeLinear, the "QDQ" form that ONNX Runtime, TensorRT, OpenVINO and
others read. The target says in which integer types.

ONNX Runtime keeps the weights of convolutions small in memory: it dequantizes them anew in every run, and leaves out
the optimisations that need constant weights. With the session's entry `session.disable_quant_qdq` at "1" it dequantizes
them once, when it loads the file. This takes the memory of float weights and has the speed of a float network
(MobileNetV2 on a CPU: a third of the time).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from roundwise.artifacts.binding import Arguments
from roundwise.artifacts.dialect import with_operators
from roundwise.artifacts.model import Model
from roundwise.artifacts.program import export_program
from roundwise.errors import ExportError
from roundwise.exporters.compressed import compressed_size
from roundwise.exporters.interface import Check, ExportedFile, Exporter
from roundwise.exporters.onnx.datafile import replacing_pair
from roundwise.exporters.onnx.decompose import decomposed
from roundwise.exporters.sensitivity import quantizes_activations
from roundwise.exporters.verify import OutputDifference, Reference, make_reference
from roundwise.graph.graph import InputSpec
from roundwise.recipe.recipe import Recipe
from roundwise.targets import TARGETS, Target
from roundwise.wording import human_bytes

if TYPE_CHECKING:  # It needs the optional packages.
    import onnx_ir

LARGEST_SINGLE_FILE = 2**31 - 2**24
"""Bytes of constants above which they go to a file of their own: an ONNX file proper must stay below 2 GiB."""


TARGET_ENTRY = "roundwise.target"
"""The entry of a file's metadata that names the target."""


@final
@dataclass(frozen=True)
class OnnxExport(ExportedFile):
    """An ONNX file that was written, run and found to agree with the model.

    Attributes:
        path: the file.
        bytes: its size, with that of the data file beside it where the weights did not fit into one file.
        compressed_bytes: the size after compression by DEFLATE, as in a .zip, .apk or HTTP download.
        target: that it was written for, by its name.
        max_difference: largest absolute difference from the model's outputs, ONNX Runtime computing in float.
        relative_difference: largest difference relative to the output's largest magnitude, likewise.
        outputs: these figures for each output, with predicted classes.
        outputs_of_weights: the same for a file without the quantizers of activations, made only to judge the weights
            alone; empty where activations are not quantized.
        default_outputs: the same as ONNX Runtime runs the file by default, with the tolerance of such runs. Where
            weights feed a MatMul it rounds that layer's inputs to 8 bits, unless the session sets
            `session.qdq_matmulnbits_accuracy_level` to "0"; where activations are quantized it uses integer kernels
            that round their results once more.
        verified_on: on which inputs the figures were found.
        opset: of the file.
        weight_types: how many quantized weight tensors are stored in each ONNX type.
    """

    path: Path
    bytes: int
    compressed_bytes: int
    target: str
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
            f"{self.path}: {human_bytes(self.bytes)} (compressed {human_bytes(self.compressed_bytes)}), opset "
            f"{self.opset}, quantized weights {types}, for {self.target}",
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
                f"  of {max(output.tolerance for output in self.default_outputs):.2g} that such roundings explain.",
                "  Graph optimisations switched off (where activations are quantized), or the session entry",
                '  "session.qdq_matmulnbits_accuracy_level" at "0" (where weights feed a MatMul), give those above.',
            ]
        return "\n".join(lines)


@final
class OnnxExporter(Exporter):
    """Writes ONNX files of opset 21, and runs each in ONNX Runtime before it is kept."""

    title: ClassVar[str] = "ONNX"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str | None] = "onnx"
    targets: ClassVar[tuple[Target, ...]] = tuple(
        TARGETS[name] for name in ("ort-cpu", "ort-small", "ort-cpu-avx2", "tensorrt", "qnn")
    )
    checks: ClassVar[bool] = True

    def write(self, model: Model, path: Path, check: Check, target: Target | None) -> OnnxExport:
        from roundwise.exporters.onnx import check as onnx_check
        from roundwise.exporters.onnx import translate

        assert target is not None
        model = model.on_cpu()
        program = _program(model)
        _refuse_float_types(program, target)
        _refuse_limited_sizes(model)
        built, weight_types = translate.build_graph(program, target, _axes(model))
        _describe(built, model.recipe, target)
        of_weights: tuple[OutputDifference, ...] = ()
        quantized = quantizes_activations(program)
        with replacing_pair(path) as (file, data):
            if quantized:
                plain = model.with_float_activations()
                of_weights = _check_weights(plain, file.with_name("weights.onnx"), check, target)
            written = _write(built, file, data)
            reference = _reference(model, program, check)
            if target.runtime is None:
                content = onnx_check.verify_content(file, reference, literally=quantized)
                checked = onnx_check.Verification(content, content)
            else:
                checked = onnx_check.verify(file, reference, literally=quantized)
            size, compressed = sum(one.stat().st_size for one in written), compressed_size(written)
        return OnnxExport(
            path=path,
            bytes=size,
            compressed_bytes=compressed,
            target=target.name,
            max_difference=max((output.max_difference for output in checked.outputs), default=0.0),
            relative_difference=max((output.relative_difference for output in checked.outputs), default=0.0),
            outputs=checked.outputs,
            outputs_of_weights=of_weights,
            default_outputs=checked.default_outputs,
            verified_on=reference.verified_on,
            opset=translate.OPSET,
            weight_types=weight_types,
        )


def _program(model: Model) -> ExportedProgram:
    """The model as a program of operations that can be translated; each quantizer is one operator."""
    return export_program(with_operators(decomposed(model.graph)), model.device)


def _axes(model: Model) -> list[dict[int, str]]:
    """For each input that is a tensor the names of its dynamic dimensions."""
    return [spec.names for spec in model.graph.inputs if isinstance(spec, InputSpec)]


def _refuse_limited_sizes(model: Model) -> None:
    """Refuse sizes with an upper limit: a file cannot check them, and would give wrong outputs beyond the limit."""
    for spec in (spec for spec in model.graph.inputs if isinstance(spec, InputSpec)):
        for size in spec.variable:
            if size.name and size.sizes.high is not None:
                raise ExportError(
                    f"'{size.name}', dimension {size.dim} of input '{spec.name}', may be {size.sizes}: for larger ones "
                    "the model's code does something else. An ONNX file cannot refuse larger sizes. Quantize the model "
                    f"without '{size.name}' in `dynamic`, for each size that you need."
                )


def _check_weights(model: Model, path: Path, check: Check, target: Target) -> tuple[OutputDifference, ...]:
    """Write the model without quantizers of activations, only to judge its weights; returns its differences."""
    from roundwise.exporters.onnx import check as onnx_check
    from roundwise.exporters.onnx import translate

    program = _program(model)
    built, _ = translate.build_graph(program, target, _axes(model))
    _write(built, path, path.with_name(f"{path.name}.data"))
    return onnx_check.verify_content(path, _reference(model, program, check), literally=False)


def _reference(model: Model, program: ExportedProgram, check: Check) -> Reference:
    """What the model gives for the samples of the check, else for those that it carries."""
    source = "calibration samples" if check.samples is None else "given samples"
    samples = model.samples if check.samples is None else check.samples
    on_cpu: Arguments | None = pytree.tree_map_only(Tensor, Tensor.cpu, samples)
    return make_reference(model, program, on_cpu, source, check.tolerance)


def _write(model: onnx_ir.Model, path: Path, data: Path) -> list[Path]:
    """Write and check the file, and the one for its data if there is too much of it; returns what was written."""
    import onnx
    import onnx_ir

    constants = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    written = [path, data] if constants > LARGEST_SINGLE_FILE else [path]
    onnx_ir.save(model, path, external_data=data.name if data in written else None)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The exported graph is not valid ONNX: {error} Please report it with the model.") from error
    return written


def _describe(model: onnx_ir.Model, recipe: Recipe, target: Target) -> None:
    model.producer_name, model.producer_version = "roundwise", version("roundwise")
    model.metadata_props["roundwise.version"] = version("roundwise")
    model.metadata_props[TARGET_ENTRY] = target.name
    model.metadata_props["roundwise.recipe.settings"] = json.dumps(recipe.as_dict())


def _refuse_float_types(program: ExportedProgram, target: Target) -> None:
    ends = {*program.graph_signature.user_inputs, *program.graph_signature.user_outputs}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in ends and isinstance(value, Tensor) and value.is_complex():
            end = "input" if node.op == "placeholder" else "output"
            raise ExportError(
                f"The {end} '{node.name}' is of complex numbers, which ONNX Runtime does not have as inputs and "
                "outputs. Let the model take and return `torch.view_as_real(…)`."
            )
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype not in target.float_types:
            dtype = str(value.dtype).removeprefix("torch.")
            raise ExportError(
                f"'{node.name}' is {dtype}, in which ONNX Runtime on a CPU has no convolutions or matrix products. "
                "Quantize `model.float()` or `model.half()` and export that."
            )
