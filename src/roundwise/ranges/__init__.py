"""Range estimation: from a weight matrix to the grid its codes live on. One file per method, one line here."""

from typing import Any

from roundwise.problem import RangeEstimator
from roundwise.ranges.aciq import ACIQ
from roundwise.ranges.minmax import MinMax
from roundwise.ranges.mse import WeightMSE
from roundwise.ranges.output_mse import OutputMSE

RANGE_ESTIMATORS: dict[str, type[RangeEstimator[Any]]] = {
    "aciq": ACIQ,
    "min-max": MinMax,
    "output-mse": OutputMSE,
    "weight-mse": WeightMSE,
}

__all__ = ["ACIQ", "RANGE_ESTIMATORS", "MinMax", "OutputMSE", "WeightMSE"]
