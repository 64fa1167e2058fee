"""Activation ranges: from the values that a tensor takes to the interval its codes cover. One file per method."""

from typing import Any

from roundwise.activations.batchnorm import ActivationBatchNorm
from roundwise.activations.minmax import ActivationMinMax
from roundwise.activations.moving_average import ActivationMovingAverage
from roundwise.activations.mse import ActivationMSE
from roundwise.activations.percentile import ActivationPercentile
from roundwise.problem import ActivationRanges

ACTIVATION_RANGES: dict[str, type[ActivationRanges[Any]]] = {
    "batch-norm": ActivationBatchNorm,
    "min-max": ActivationMinMax,
    "moving-average": ActivationMovingAverage,
    "mse": ActivationMSE,
    "percentile": ActivationPercentile,
}

__all__ = [
    "ACTIVATION_RANGES",
    "ActivationBatchNorm",
    "ActivationMSE",
    "ActivationMinMax",
    "ActivationMovingAverage",
    "ActivationPercentile",
]
