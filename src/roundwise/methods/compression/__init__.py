"""Structured compression: layers become smaller. One file per method, one line here, sorted by name.

The command line, the recipe files, the documentation, the conformance tests and the benchmarks all read these tables.
"""

from roundwise.methods.compressing import (
    CompressionMethod,
    Factorization,
    FactorizationProblem,
    Factorized,
    LayerOptions,
    RatioChoice,
)
from roundwise.methods.compression.output_error import OutputError
from roundwise.methods.compression.same_ratio import SameRatio
from roundwise.methods.compression.spatial_svd import SpatialSVD
from roundwise.methods.compression.weight_svd import WeightSVD

COMPRESSION_METHODS: dict[str, type[CompressionMethod]] = {"spatial-svd": SpatialSVD, "weight-svd": WeightSVD}

RATIO_CHOICES: dict[str, type[RatioChoice]] = {"output-error": OutputError, "same-ratio": SameRatio}

__all__ = [
    "COMPRESSION_METHODS",
    "RATIO_CHOICES",
    "CompressionMethod",
    "Factorization",
    "FactorizationProblem",
    "Factorized",
    "LayerOptions",
    "OutputError",
    "RatioChoice",
    "SameRatio",
    "SpatialSVD",
    "WeightSVD",
]
