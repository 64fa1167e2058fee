"""Rounding: from a weight matrix and its grid to integer codes. One file per method, one line here, sorted by name.

The command line, the recipe files, the documentation, the conformance tests and the benchmarks all read this table.
"""

from typing import TYPE_CHECKING, Any

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.rounding.adaround import AdaRound
from roundwise.methods.rounding.ceil import Ceil
from roundwise.methods.rounding.coordinate_descent import CoordinateDescent
from roundwise.methods.rounding.cross_entropy_method import CrossEntropyMethod
from roundwise.methods.rounding.floor import Floor
from roundwise.methods.rounding.given import Given
from roundwise.methods.rounding.gptq import GPTQ
from roundwise.methods.rounding.gram_adaround import GramAdaRound
from roundwise.methods.rounding.nearest import Nearest
from roundwise.methods.rounding.nearest_moments import NearestMoments
from roundwise.methods.rounding.nearest_scaled import NearestScaled
from roundwise.methods.rounding.stochastic import Stochastic
from roundwise.methods.rounding.straight_through import StraightThrough
from roundwise.methods.rounding.tabu_search import TabuSearch
from roundwise.wording import no_such_name

ROUNDING_SOLVERS: dict[str, type[RoundingSolver[Any]]] = {
    "adaround": AdaRound,
    "ceil": Ceil,
    "coordinate-descent": CoordinateDescent,
    "cross-entropy-method": CrossEntropyMethod,
    "floor": Floor,
    "gptq": GPTQ,
    "gram-adaround": GramAdaRound,
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
    "Ceil",
    "CoordinateDescent",
    "CrossEntropyMethod",
    "Floor",
    "Given",
    "GramAdaRound",
    "Nearest",
    "NearestMoments",
    "NearestScaled",
    "Problem",
    "Rounding",
    "RoundingSolver",
    "Stochastic",
    "StraightThrough",
    "TabuSearch",
    "Traits",
]

if not TYPE_CHECKING:  # type checkers go by `__all__`: with `__getattr__`, they would accept every name
    __getattr__ = no_such_name("rw.rounding", __all__)
