from .api import compress, finetune, quantize, trainable
from .artifacts.model import Model, load
from .engine.calibration import DataFree
from .engine.network import Network, capture
from .errors import (
    CalibrationError,
    CaptureError,
    ExportError,
    FileFormatError,
    InferenceError,
    MemoryBudgetError,
    ModelError,
    RecipeError,
    RoundwiseError,
)
from .exporters import export
from .methods import activations, compression, corrections, ranges, rewrites, rounding, training
from .numerics.grid import Grid, PerChannel, PerGroup, PerTensor
from .recipe.compress import Compress
from .recipe.finetune import Finetune
from .recipe.recipe import Recipe
from .recipe.settings import Activations, Override, Weights
from .recipe.stages import Quantize, Rewrite
from .report import Report
from .reporting import html_report

__all__ = [
    "Activations",
    "CalibrationError",
    "CaptureError",
    "Compress",
    "DataFree",
    "ExportError",
    "FileFormatError",
    "Finetune",
    "Grid",
    "InferenceError",
    "MemoryBudgetError",
    "Model",
    "ModelError",
    "Network",
    "Override",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Quantize",
    "Recipe",
    "RecipeError",
    "Report",
    "Rewrite",
    "RoundwiseError",
    "Weights",
    "activations",
    "capture",
    "compress",
    "compression",
    "corrections",
    "export",
    "finetune",
    "html_report",
    "load",
    "quantize",
    "ranges",
    "rewrites",
    "rounding",
    "trainable",
    "training",
]

__version__: str
