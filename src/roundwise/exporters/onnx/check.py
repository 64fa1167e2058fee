"""Run an ONNX file in ONNX Runtime and compare it with the model that it was made from.

ONNX Runtime does not always compute what a file says:

- It turns DequantizeLinear → MatMul into one kernel that, by default, rounds *the layer's inputs* to 8 bits as well
  (the session's entry `session.qdq_matmulnbits_accuracy_level`, 4). This costs about 0.5 % of the output's range per
  layer.
- Where activations are quantized, its integer kernels round once more between sums and codes.
- Its rewrites of graphs may be wrong (`exporters/onnx/forms.py`).

So a file is judged twice. With settings that leave out these roundings it must agree with the model to the last digits:
then the file is right. With default settings, as users run it, it must agree up to what such roundings explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from roundwise.errors import ExportError, InferenceError
from roundwise.exporters.verify import OutputDifference, Reference
from roundwise.runtimes import OnnxRuntime
from roundwise.runtimes.interface import Array

FLOAT_INPUTS = {"session.qdq_matmulnbits_accuracy_level": "0"}
"""Entry of a session's configuration with which ONNX Runtime leaves the inputs of MatMul layers in float."""

_SETTINGS = {
    'the entry "session.qdq_matmulnbits_accuracy_level" at "0"': OnnxRuntime(entries=FLOAT_INPUTS),
    'the entry "session.disable_quant_qdq" at "1"': OnnxRuntime(entries={"session.disable_quant_qdq": "1"}),
    "graph_optimization_level at ORT_DISABLE_ALL": OnnxRuntime(optimize=False),
}
"""Settings of a session that leave out rewrites or roundings, the fastest first."""


@final
@dataclass(frozen=True)
class Verification:
    """What running the file showed.

    Attributes:
        outputs: with ONNX Runtime computing what the file says.
        default_outputs: as ONNX Runtime runs the file by default; the same as `outputs` where that is within tolerance.
    """

    outputs: tuple[OutputDifference, ...]
    default_outputs: tuple[OutputDifference, ...]


def verify(path: Path, reference: Reference, *, literally: bool) -> Verification:
    """Compare the file with the model's outputs, also as users run it.

    Args:
        path: the ONNX file.
        reference: inputs, and what the model gives for them.
        literally: as for `verify_content`.

    Raises:
        ExportError: ONNX Runtime cannot run the file, or an output differs by more than its tolerance.
    """
    results = _run(OnnxRuntime(), path, reference)
    default = reference.compare(results)
    if all(output.passes for output in default):
        return Verification(default, default)
    outputs = verify_content(path, reference, literally=literally)
    default = reference.compare(results, kernels=True)
    if not all(output.passes for output in default):
        raise ExportError(
            f"The exported file is right, but ONNX Runtime {OnnxRuntime().version} gives other results from it in "
            f"a session with default settings, on {reference.verified_on}: {_failed(default)}. Roundings in its "
            f"kernels explain up to {reference.kernel_tolerance.floats:.2g}. Nothing was kept. "
            f"{_way_out(path, reference)}"
        )
    return Verification(outputs, default)


def verify_content(path: Path, reference: Reference, *, literally: bool) -> tuple[OutputDifference, ...]:
    """Compare the file with the model's outputs in a session that leaves out ONNX Runtime's own roundings.

    Args:
        path: the ONNX file.
        reference: inputs, and what the model gives for them.
        literally: whether the session takes the graph as it is, without fused kernels: where activations are quantized.
            Otherwise it does so only if it does not agree with them.

    Raises:
        ExportError: ONNX Runtime cannot run the file, or an output differs by more than its tolerance.
    """
    outputs: tuple[OutputDifference, ...] = ()
    for optimize in (False,) if literally else (True, False):
        runtime = OnnxRuntime(optimize=optimize, entries=FLOAT_INPUTS)
        outputs = reference.compare(_run(runtime, path, reference))
        if all(output.passes for output in outputs):
            return outputs
    raise ExportError(
        f"The exported file does not agree with the model in ONNX Runtime {OnnxRuntime().version}, on "
        f"{reference.verified_on}: {_failed(outputs)}. Up to {reference.tolerance.floats:g} of an output's largest "
        "magnitude is what two runtimes may differ by. Nothing was kept. Please report this with the model; if you "
        "know why it must be so, export with a larger `tolerance`."
    )


def _failed(outputs: tuple[OutputDifference, ...]) -> str:
    return "; ".join(str(output) for output in outputs if not output.passes)


def _way_out(path: Path, reference: Reference) -> str:
    """Which settings of a session agree with the model, and how to keep a file that is to run with them."""
    for setting, runtime in _SETTINGS.items():
        if all(output.passes for output in reference.compare(_run(runtime, path, reference))):
            return (
                f"It agrees in a session with {setting}. Please report the model; to keep a file that you run with "
                "this setting only, export with a larger `tolerance`."
            )
    return "Please report the model."


def _run(runtime: OnnxRuntime, path: Path, reference: Reference) -> list[list[Array]]:
    """The file's outputs for each set of inputs."""
    try:
        file = runtime.open(path)
        return [file.run(inputs) for inputs in reference.inputs]
    except InferenceError as error:
        raise ExportError(
            f"The exported file does not run: {error} Nothing was kept. If that is no help, report it with the model."
        ) from error
