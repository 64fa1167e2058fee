"""Roundwise: quantize trained networks to 4-bit weights by choosing, for every weight, whether to round up or down.

    import roundwise as rw

    quantized = rw.quantize(model, images)
    print(quantized.report)
    quantized.save("model.rw")
    rw.export_onnx(quantized, "model.onnx")

Names are looked up when they are first used, so that `import roundwise` (and `roundwise --help`) does not wait for
PyTorch, and ONNX stays an optional extra.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roundwise.activations import (
        ActivationBatchNorm,
        ActivationMinMax,
        ActivationMovingAverage,
        ActivationMSE,
        ActivationPercentile,
    )
    from roundwise.calibration import DataFree
    from roundwise.captured import CapturedModel, capture_model
    from roundwise.correction import AnalyticBias, EmpiricalBias
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
    from roundwise.export import export_onnx
    from roundwise.grid import Grid, PerChannel, PerGroup, PerTensor
    from roundwise.model import QuantizedModel, load
    from roundwise.pipeline import quantize
    from roundwise.problem import (
        ActivationRanges,
        Correction,
        Problem,
        RangeEstimator,
        Rewrite,
        Rounding,
        RoundingSolver,
    )
    from roundwise.ranges import ACIQ, MinMax, OutputMSE, WeightMSE
    from roundwise.recipe import Activations, Recipe, Weights
    from roundwise.report import Report
    from roundwise.reporting import html_report
    from roundwise.rewrites import CrossLayerEqualization, HighBiasAbsorption, OutlierChannelSplitting
    from roundwise.rounding import (
        GPTQ,
        AdaRound,
        AdaRoundSGD,
        Ceil,
        CoordinateDescent,
        CrossEntropyMethod,
        Floor,
        Given,
        Nearest,
        NearestMoments,
        NearestScaled,
        Stochastic,
        StraightThrough,
        TabuSearch,
    )
    from roundwise.taskloss import (
        ExactHessian,
        GaussNewton,
        PredictedClasses,
        PredictedProbabilities,
        TaskHessian,
        solve_qubo_cem,
        solve_qubo_tabu,
        task_hessian,
    )

__version__ = _version("roundwise")

__all__ = [
    "ACIQ",
    "GPTQ",
    "ActivationBatchNorm",
    "ActivationMSE",
    "ActivationMinMax",
    "ActivationMovingAverage",
    "ActivationPercentile",
    "ActivationRanges",
    "Activations",
    "AdaRound",
    "AdaRoundSGD",
    "AnalyticBias",
    "CalibrationError",
    "CaptureError",
    "CapturedModel",
    "Ceil",
    "CoordinateDescent",
    "Correction",
    "CrossEntropyMethod",
    "CrossLayerEqualization",
    "DataFree",
    "EmpiricalBias",
    "ExactHessian",
    "ExportError",
    "FileFormatError",
    "Floor",
    "GaussNewton",
    "Given",
    "Grid",
    "HighBiasAbsorption",
    "MemoryBudgetError",
    "MinMax",
    "ModelError",
    "Nearest",
    "NearestMoments",
    "NearestScaled",
    "OutlierChannelSplitting",
    "OutputMSE",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PredictedClasses",
    "PredictedProbabilities",
    "Problem",
    "QuantizedModel",
    "RangeEstimator",
    "Recipe",
    "RecipeError",
    "Report",
    "Rewrite",
    "Rounding",
    "RoundingSolver",
    "RoundwiseError",
    "Stochastic",
    "StraightThrough",
    "TabuSearch",
    "TaskHessian",
    "WeightMSE",
    "Weights",
    "capture_model",
    "export_onnx",
    "html_report",
    "load",
    "quantize",
    "solve_qubo_cem",
    "solve_qubo_tabu",
    "task_hessian",
]

_HOMES = (
    "errors",
    "grid",
    "problem",
    "report",
    "ranges",
    "activations",
    "rounding",
    "correction",
    "rewrites",
    "calibration",
    "recipe",
    "model",
    "captured",
    "pipeline",
    "export",
    "reporting",
    "taskloss",
)


def __getattr__(name: str) -> object:
    """Find a public name in the module it lives in."""
    if name in __all__:
        for home in _HOMES:
            module = _import_module(f"roundwise.{home}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module 'roundwise' has no attribute '{name}'")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__, "__version__"]
