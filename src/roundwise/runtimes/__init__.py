"""Programs that run network files, such as ONNX Runtime: run a file on arrays, and time it.

Files and arrays only; nothing here knows models or graphs. A runtime's package is imported when a file is opened.
"""

from pathlib import Path

from roundwise.runtimes.interface import Arrays, FileInput, OpenFile, Runtime
from roundwise.runtimes.onnxruntime import OnnxRuntime
from roundwise.runtimes.openvino import OpenVino
from roundwise.runtimes.timing import Timing, time_alternately, time_file

__all__ = [
    "RUNTIMES",
    "Arrays",
    "FileInput",
    "OnnxRuntime",
    "OpenFile",
    "OpenVino",
    "Runtime",
    "Timing",
    "runtime_for",
    "time_alternately",
    "time_file",
]

RUNTIMES: dict[str, type[Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
"""Each runtime by its name. Where several read a suffix, the first is the usual one."""


def runtime_for(path: Path) -> type[Runtime] | None:
    """The runtime that reads files of this suffix, or None; the suffix may be in capitals."""
    return next((runtime for runtime in RUNTIMES.values() if path.suffix.lower() in runtime.suffixes), None)
