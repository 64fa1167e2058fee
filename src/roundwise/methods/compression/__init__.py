"""Structured compression: layers become smaller. One file per method, one line here, sorted by name.

The command line, the recipe files, the documentation, the conformance tests and the benchmarks all read these tables.
"""

from typing import TYPE_CHECKING

from roundwise.methods.compressing import (
    CompressionMethod,
    Factorization,
    FactorizationProblem,
    Factorized,
    LayerOptions,
    Pruning,
    PruningProblem,
    RatioChoice,
)
from roundwise.methods.compression.backward_elimination import BackwardElimination
from roundwise.methods.compression.channel_pruning import ChannelPruning
from roundwise.methods.compression.cp import CP
from roundwise.methods.compression.equal_accuracy_loss import EqualAccuracyLoss
from roundwise.methods.compression.magnitude_pruning import MagnitudePruning
from roundwise.methods.compression.output_error import OutputError
from roundwise.methods.compression.same_ratio import SameRatio
from roundwise.methods.compression.spatial_svd import SpatialSVD
from roundwise.methods.compression.tensor_train import TensorTrain
from roundwise.methods.compression.tucker2 import Tucker2
from roundwise.methods.compression.weight_svd import WeightSVD
from roundwise.wording import no_such_name

COMPRESSION_METHODS: dict[str, type[CompressionMethod]] = {
    "backward-elimination": BackwardElimination,
    "channel-pruning": ChannelPruning,
    "cp": CP,
    "magnitude-pruning": MagnitudePruning,
    "spatial-svd": SpatialSVD,
    "tensor-train": TensorTrain,
    "tucker-2": Tucker2,
    "weight-svd": WeightSVD,
}

RATIO_CHOICES: dict[str, type[RatioChoice]] = {
    "equal-accuracy-loss": EqualAccuracyLoss,
    "output-error": OutputError,
    "same-ratio": SameRatio,
}

__all__ = [
    "COMPRESSION_METHODS",
    "CP",
    "RATIO_CHOICES",
    "BackwardElimination",
    "ChannelPruning",
    "CompressionMethod",
    "EqualAccuracyLoss",
    "Factorization",
    "FactorizationProblem",
    "Factorized",
    "LayerOptions",
    "MagnitudePruning",
    "OutputError",
    "Pruning",
    "PruningProblem",
    "RatioChoice",
    "SameRatio",
    "SpatialSVD",
    "TensorTrain",
    "Tucker2",
    "WeightSVD",
]

if not TYPE_CHECKING:  # type checkers go by `__all__`: with `__getattr__`, they would accept every name
    __getattr__ = no_such_name("rw.compression", __all__)
