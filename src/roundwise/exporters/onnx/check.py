"""Run an ONNX file in ONNX Runtime and compare it with the model that it was made from.

ONNX Runtime does not always compute what a file says:

- It turns DequantizeLinear → MatMul into one kernel that, by default, rounds *the layer's inputs* to 8 bits as well
  (the session's entry `session.qdq_matmulnbits_accuracy_level`, 4). This costs about 0.5 % of the output's range per
  layer.
- Where activations are quantized, its integer kernels round once more between sums and codes.

Both are the runtime's choice, not the file's content. So a file whose default run is not within tolerance is run again
without them, and this second run decides whether the file is right. Both figures are reported.
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
    """Compare the file with the model's outputs.

    Args:
        path: the ONNX file.
        reference: inputs, and what the model gives for them.
        literally: whether the second run takes the graph as it is, without fused kernels: where activations are
            quantized.

    Raises:
        ExportError: ONNX Runtime cannot run the file, or an output differs by more than its tolerance.
    """
    default = outputs = reference.compare(_run(OnnxRuntime(), path, reference))
    if not all(output.passes for output in default):
        exact = OnnxRuntime(optimize=not literally, entries=FLOAT_INPUTS)
        outputs = reference.compare(_run(exact, path, reference))
    failed = [str(output) for output in outputs if not output.passes]
    if failed:
        raise ExportError(
            f"The exported file does not agree with the model in ONNX Runtime {OnnxRuntime().version}, on "
            f"{reference.verified_on}: {'; '.join(failed)}. Up to {reference.tolerance:g} of an output's largest "
            "magnitude is what two runtimes may differ by. Nothing was kept. Please report this with the model; if you "
            "know why it must be so, export with a larger `tolerance`."
        )
    return Verification(outputs, default)


def _run(runtime: OnnxRuntime, path: Path, reference: Reference) -> list[list[Array]]:
    """The file's outputs for each set of inputs."""
    try:
        file = runtime.open(path)
        return [file.run(inputs) for inputs in reference.inputs]
    except InferenceError as error:
        raise ExportError(
            f"The exported file does not run: {error} Nothing was kept. Report it with the model."
        ) from error
