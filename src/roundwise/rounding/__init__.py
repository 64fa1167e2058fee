"""Rounding: from a weight matrix and its grid to integer codes. One file per method, one line here.

The command line, the recipe files, the documentation, the conformance tests and the benchmarks all read this table.
"""

from typing import Any

from roundwise.problem import RoundingSolver
from roundwise.rounding.adaround import AdaRound
from roundwise.rounding.adaround_sgd import AdaRoundSGD
from roundwise.rounding.coordinate_descent import CoordinateDescent
from roundwise.rounding.cross_entropy_method import CrossEntropyMethod
from roundwise.rounding.directed import Ceil, Floor
from roundwise.rounding.given import Given
from roundwise.rounding.gptq import GPTQ
from roundwise.rounding.nearest import Nearest
from roundwise.rounding.nearest_moments import NearestMoments
from roundwise.rounding.nearest_scaled import NearestScaled
from roundwise.rounding.stochastic import Stochastic
from roundwise.rounding.straight_through import StraightThrough
from roundwise.rounding.tabu import TabuSearch

ROUNDING_SOLVERS: dict[str, type[RoundingSolver[Any]]] = {
    "adaround": AdaRound,
    "adaround-sgd": AdaRoundSGD,
    "ceil": Ceil,
    "coordinate-descent": CoordinateDescent,
    "cross-entropy-method": CrossEntropyMethod,
    "floor": Floor,
    "gptq": GPTQ,
    "nearest": Nearest,
    "nearest-moments": NearestMoments,
    "nearest-scaled": NearestScaled,
    "stochastic": Stochastic,
    "straight-through": StraightThrough,
    "tabu-search": TabuSearch,
}

__all__ = [
    "GPTQ",
    "ROUNDING_SOLVERS",
    "AdaRound",
    "AdaRoundSGD",
    "Ceil",
    "CoordinateDescent",
    "CrossEntropyMethod",
    "Floor",
    "Given",
    "Nearest",
    "NearestMoments",
    "NearestScaled",
    "Stochastic",
    "StraightThrough",
    "TabuSearch",
]
