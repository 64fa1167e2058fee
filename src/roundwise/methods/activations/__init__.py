"""Range estimation for activations: choose the interval that the codes of a tensor cover. One file per method."""

from typing import TYPE_CHECKING, Any

from roundwise.methods.activations.batch_norm import ActivationBatchNorm
from roundwise.methods.activations.mean_magnitude import ActivationMeanMagnitude
from roundwise.methods.activations.min_max import ActivationMinMax
from roundwise.methods.activations.moving_average import ActivationMovingAverage
from roundwise.methods.activations.mse import ActivationMSE
from roundwise.methods.activations.percentile import ActivationPercentile
from roundwise.methods.interfaces import ActivationRanges
from roundwise.wording import no_such_name

ACTIVATION_RANGES: dict[str, type[ActivationRanges[Any]]] = {
    "batch-norm": ActivationBatchNorm,
    "mean-magnitude": ActivationMeanMagnitude,
    "min-max": ActivationMinMax,
    "moving-average": ActivationMovingAverage,
    "mse": ActivationMSE,
    "percentile": ActivationPercentile,
}

__all__ = [
    "ACTIVATION_RANGES",
    "ActivationBatchNorm",
    "ActivationMSE",
    "ActivationMeanMagnitude",
    "ActivationMinMax",
    "ActivationMovingAverage",
    "ActivationPercentile",
    "ActivationRanges",
]

if not TYPE_CHECKING:  # type checkers go by `__all__`: with `__getattr__`, they would accept every name
    __getattr__ = no_such_name("rw.activations", __all__)
