"""Corrections: shift a layer's bias to compensate for an error of its codes. One file per method, one line here."""

from typing import Any

from roundwise.methods.corrections.analytic_bias import AnalyticBias
from roundwise.methods.corrections.empirical_bias import EmpiricalBias
from roundwise.methods.interfaces import Correction

CORRECTIONS: dict[str, type[Correction[Any]]] = {
    "analytic-bias": AnalyticBias,
    "empirical-bias": EmpiricalBias,
}

__all__ = ["CORRECTIONS", "AnalyticBias", "Correction", "EmpiricalBias"]
