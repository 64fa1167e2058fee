"""Range estimation for weights: choose scale and zero point for a weight matrix. One file per method, one line here."""

from typing import Any

from roundwise.methods.interfaces import RangeEstimator
from roundwise.methods.ranges.aciq import ACIQ
from roundwise.methods.ranges.minmax import MinMax
from roundwise.methods.ranges.mse import WeightMSE
from roundwise.methods.ranges.output_mse import OutputMSE

RANGE_ESTIMATORS: dict[str, type[RangeEstimator[Any]]] = {
    "aciq": ACIQ,
    "min-max": MinMax,
    "output-mse": OutputMSE,
    "weight-mse": WeightMSE,
}

__all__ = ["ACIQ", "RANGE_ESTIMATORS", "MinMax", "OutputMSE", "WeightMSE"]
