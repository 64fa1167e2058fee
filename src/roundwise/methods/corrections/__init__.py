"""Corrections: shift a layer's bias to compensate for an error of its codes. One file per method, one line here."""

from typing import TYPE_CHECKING, Any

from roundwise.methods.corrections.analytic_bias import AnalyticBias
from roundwise.methods.corrections.empirical_bias import EmpiricalBias
from roundwise.methods.interfaces import Correction
from roundwise.wording import no_such_name

CORRECTIONS: dict[str, type[Correction[Any]]] = {
    "analytic-bias": AnalyticBias,
    "empirical-bias": EmpiricalBias,
}

__all__ = ["CORRECTIONS", "AnalyticBias", "Correction", "EmpiricalBias"]

if not TYPE_CHECKING:  # type checkers go by `__all__`: with `__getattr__`, they would accept every name
    __getattr__ = no_such_name("rw.corrections", __all__)
