"""Rounding: from a weight matrix and its grid to integer codes. One file per method, one line here.

The command line, the recipe files, the documentation, the conformance tests and the benchmarks all read this table.
"""

from typing import Any

from roundwise.problem import RoundingSolver
from roundwise.rounding.adaround import AdaRound
from roundwise.rounding.adaround_sgd import AdaRoundSGD
from roundwise.rounding.directed import Ceil, Floor
from roundwise.rounding.nearest import Nearest
from roundwise.rounding.stochastic import Stochastic

ROUNDING_SOLVERS: dict[str, type[RoundingSolver[Any]]] = {
    "adaround": AdaRound,
    "adaround-sgd": AdaRoundSGD,
    "ceil": Ceil,
    "floor": Floor,
    "nearest": Nearest,
    "stochastic": Stochastic,
}

__all__ = ["ROUNDING_SOLVERS", "AdaRound", "AdaRoundSGD", "Ceil", "Floor", "Nearest", "Stochastic"]
