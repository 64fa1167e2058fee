"""Files for other programs, one exporter for each format."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from roundwise.artifacts.binding import Arguments
from roundwise.artifacts.model import Model
from roundwise.engine.torch_state import isolated_torch_state
from roundwise.errors import ExportError
from roundwise.exporters.interface import ExportedFile, Exporter
from roundwise.exporters.onnx.exporter import OnnxExport, OnnxExporter
from roundwise.exporters.requests import requested_check
from roundwise.exporters.rw import RwExporter, SavedFile
from roundwise.exporters.targeting import check_model, target_for
from roundwise.files import destination, named

__all__ = [
    "EXPORTERS",
    "ExportedFile",
    "Exporter",
    "OnnxExport",
    "OnnxExporter",
    "RwExporter",
    "SavedFile",
    "export",
    "exporter_for",
    "require_packages",
]

EXPORTERS: dict[str, Exporter] = {
    suffix: exporter for exporter in (OnnxExporter(), RwExporter()) for suffix in exporter.suffixes
}
"""The exporter of each suffix."""


def export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    samples: Tensor | Arguments | None = None,
    tolerance: float | None = None,
    target: str | None = None,
) -> ExportedFile:
    """Write a quantized model as a file; the suffix of its name says in which format.

        .onnx   for ONNX Runtime and others: run there and compared with the model before it is kept
        .rw     Roundwise's own file, as `model.save` writes it

    The file appears complete or not at all: whatever goes wrong, an earlier file of that name stays as it was.

    Args:
        model: the result of `quantize` or `load`.
        path: where to.
        samples: inputs to compare on: a tensor, or `(positional inputs, inputs by name)`. None takes the calibration
            samples that the model carries, and random numbers where it carries none because it was loaded from a file.
        tolerance: the largest difference that passes, relative to an output's largest magnitude. None takes 1e-4, or
            5e-3 for a float16 model; where activations are quantized, that is what passes without their quantizers, and
            with them what the model's own sensitivity explains (see `exporters/verify.py`).
        target: the name of the target that the file is written for, such as "ort-small"; the codes are the same. None
            takes the target that the network was quantized for, or the usual one of the format.

    Returns:
        What is known about the file: its size, and for ONNX how far each output differs.

    Raises:
        ExportError: the suffix is unknown, packages are missing, the path cannot be written to, an operation has no
            form in the format, or the file does not agree with the model.
        FileFormatError: a `.rw` file cannot be written.

    Example:
        >>> import roundwise as rw  # doctest: +SKIP
        >>> print(rw.export(quantized, "model.onnx"))  # doctest: +SKIP
        model.onnx: 159.0 KiB (compressed 123.1 KiB), opset 21, quantized weights 20 × INT4, for ort-cpu
        checked in ONNX Runtime on 8 calibration samples, in batches of 8, 2, 1:
          'output' differs by at most 3.8e-06 (4.1e-07 relative)
    """
    path = named(path, ExportError)
    exporter = exporter_for(path)
    _check_place(path)
    require_packages(exporter)
    if not isinstance(model, Model):
        raise ExportError(
            f"what is to be exported is a {type(model).__name__}; it must be the result of `quantize` or `load`."
        )
    if not exporter.checks and (samples is not None or tolerance is not None):
        raise ExportError(
            f"'{path}' is a {exporter.title} file, which is not compared with the model: it holds the model itself. "
            "Leave out `samples` and `tolerance`."
        )
    wanted = target_for(exporter, target, model.recipe)
    if wanted is not None:
        check_model(model, wanted)
    check = requested_check(model, samples, tolerance)
    with isolated_torch_state(model.device):
        return exporter.write(model, path, check, wanted)


def exporter_for(path: Path) -> Exporter:
    """The exporter for a file of this name; the suffix may be in capitals.

    Raises:
        ExportError: there is none for the suffix.
    """
    exporter = EXPORTERS.get(path.suffix.lower())
    if exporter is None:
        found = f"ends in '{path.suffix}', a format that Roundwise does not write" if path.suffix else "has no suffix"
        raise ExportError(f"'{path}' {found}. The suffix decides the format: give one of {', '.join(EXPORTERS)}.")
    return exporter


def require_packages(exporter: Exporter) -> None:
    """Make sure that the packages that an exporter needs are installed.

    Raises:
        ExportError: names those that are missing, and the extra that installs them.
    """
    missing = [name for name in exporter.packages if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"An export to {exporter.title} needs {', '.join(missing)}, not installed here. Run: "
            f'pip install "roundwise[{exporter.extra}]"'
        )


def _check_place(path: Path) -> None:
    """Make sure, before any work, that a file of that name can be written."""
    folder = destination(path, ExportError).parent
    if not os.access(folder, os.W_OK):
        raise ExportError(f"The folder '{folder}' cannot be written to: choose another, or ask for permission.")
