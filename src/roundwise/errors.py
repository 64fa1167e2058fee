"""Every error that Roundwise raises on purpose.

    RoundwiseError
    ├── CalibrationError   the samples cannot be used: none, NaN, wrong shape, wrong structure
    ├── CaptureError       the model cannot be turned into one graph of operations
    ├── ModelError         the model's own content stands in the way: NaN weights, no layers, several devices
    ├── RecipeError        the request contradicts itself, the model, or what a grid can be
    ├── MemoryBudgetError  the run would fit neither in memory nor on disk
    ├── FileFormatError    a file is not what it claims to be: truncated, tampered with, of another version
    ├── ExportError        the exported file cannot be written, or does not agree with the model
    └── InferenceError     a runtime, such as ONNX Runtime, is not installed, or cannot load or run a file

A message says what was found (with numbers and the layer's name), why that cannot work, and what to do. Names in it may
come from a stranger's file, so characters that a terminal obeys are shown as Python writes them.
"""

from __future__ import annotations

from roundwise.wording import printable_lines


class RoundwiseError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a bug."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable_lines(str(message)))


class CalibrationError(RoundwiseError, ValueError):
    """The calibration samples cannot be used."""


class CaptureError(RoundwiseError):
    """The model cannot be captured as one graph of operations."""


class ModelError(RoundwiseError, ValueError):
    """The model's weights or structure cannot be quantized."""


class RecipeError(RoundwiseError, ValueError):
    """The recipe asks for something impossible."""


class MemoryBudgetError(RoundwiseError):
    """The run would exceed the memory budget and the disk space beside it."""


class FileFormatError(RoundwiseError, ValueError):
    """A file is not a valid Roundwise file, or not a valid input file."""


class ExportError(RoundwiseError):
    """An export failed, or what it wrote does not agree with the quantized model."""


class InferenceError(RoundwiseError):
    """A runtime, such as ONNX Runtime, is not installed, or cannot load or run a file."""
