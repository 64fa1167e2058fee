"""Roundwise: quantize trained networks to 4-bit weights by choosing, for every weight, whether to round up or down.

import roundwise as rw

quantized = rw.quantize(model, images)
print(quantized.report)
quantized.save("model.rw")
rw.export_onnx(quantized, "model.onnx")
"""

from importlib.metadata import version

__version__ = version("roundwise")

from roundwise.errors import (
    CalibrationError,
    CaptureError,
    ExportError,
    FileFormatError,
    MemoryBudgetError,
    ModelError,
    RecipeError,
    RoundwiseError,
)
from roundwise.grid import Grid, PerChannel, PerGroup, PerTensor
from roundwise.model import QuantizedModel, load
from roundwise.pipeline import quantize
from roundwise.problem import Problem, RangeEstimator, Rounding, RoundingSolver
from roundwise.ranges import MinMax, WeightMSE
from roundwise.recipe import Recipe, Weights
from roundwise.report import Report
from roundwise.rounding import AdaRoundSGD, Ceil, Floor, Nearest, Stochastic

__all__ = [
    "AdaRoundSGD",
    "CalibrationError",
    "CaptureError",
    "Ceil",
    "ExportError",
    "FileFormatError",
    "Floor",
    "Grid",
    "MemoryBudgetError",
    "MinMax",
    "ModelError",
    "Nearest",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Problem",
    "QuantizedModel",
    "RangeEstimator",
    "Recipe",
    "RecipeError",
    "Report",
    "Rounding",
    "RoundingSolver",
    "RoundwiseError",
    "Stochastic",
    "WeightMSE",
    "Weights",
    "export_onnx",
    "load",
    "quantize",
]


def __getattr__(name: str) -> object:
    """`export_onnx` is looked up when it is first used: ONNX is an optional extra."""
    if name == "export_onnx":
        from roundwise.export import export_onnx

        return export_onnx
    raise AttributeError(f"module 'roundwise' has no attribute '{name}'")
