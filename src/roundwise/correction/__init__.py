"""Correction: what a layer's bias does about an error that its codes leave. One file per method, one line here."""

from typing import Any

from roundwise.correction.analytic_bias import AnalyticBias
from roundwise.correction.empirical_bias import EmpiricalBias
from roundwise.problem import Correction

CORRECTIONS: dict[str, type[Correction[Any]]] = {
    "analytic-bias": AnalyticBias,
    "empirical-bias": EmpiricalBias,
}

__all__ = ["CORRECTIONS", "AnalyticBias", "EmpiricalBias"]
