"""Range estimation for weights: choose scale and zero point for a weight matrix. One file per method, one line here."""

from typing import TYPE_CHECKING, Any

from roundwise.methods.interfaces import RangeEstimator
from roundwise.methods.ranges.aciq import ACIQ
from roundwise.methods.ranges.mean_magnitude import MeanMagnitude
from roundwise.methods.ranges.min_max import MinMax
from roundwise.methods.ranges.output_mse import OutputMSE
from roundwise.methods.ranges.three_sigma import ThreeSigma
from roundwise.methods.ranges.weight_mse import WeightMSE
from roundwise.wording import no_such_name

RANGE_ESTIMATORS: dict[str, type[RangeEstimator[Any]]] = {
    "aciq": ACIQ,
    "mean-magnitude": MeanMagnitude,
    "min-max": MinMax,
    "output-mse": OutputMSE,
    "three-sigma": ThreeSigma,
    "weight-mse": WeightMSE,
}

__all__ = ["ACIQ", "RANGE_ESTIMATORS", "MeanMagnitude", "MinMax", "OutputMSE", "ThreeSigma", "WeightMSE"]

if not TYPE_CHECKING:  # type checkers go by `__all__`: with `__getattr__`, they would accept every name
    __getattr__ = no_such_name("rw.ranges", __all__)
