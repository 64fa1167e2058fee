"""The tables of "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020, arXiv:2004.10568).

"AdaRound" is the paper's procedure here, `AdaRoundSGD`; rows named "AdaRound in Gram space" are this library's default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from roundwise.problem import RangeEstimator
from roundwise.ranges import MinMax, OutputMSE, WeightMSE
from roundwise.recipe import Recipe
from roundwise.reproduction.study import Row, Settings, Table
from roundwise.rounding import AdaRound, AdaRoundSGD, Ceil, Floor, Nearest, Stochastic

STOCHASTIC_RUNS = 100
"""As in Table 1."""


def _recipe(settings: Settings, rounding: Any, ranges: RangeEstimator[Any] = WeightMSE(), **more: Any) -> Recipe:
    return Recipe(weights=dataclasses.replace(settings.weights, ranges=ranges), rounding=rounding, **more)


def _sgd(settings: Settings, **changes: Any) -> AdaRoundSGD:
    return AdaRoundSGD(iterations=settings.iterations, **changes)


def _table1(s: Settings) -> Sequence[Row]:
    return [
        Row("nearest", "52.29", _recipe(s, Nearest()), first_layer_only=True),
        Row("ceil", "0.10", _recipe(s, Ceil()), first_layer_only=True),
        Row("floor", "0.10", _recipe(s, Floor()), first_layer_only=True),
        Row("stochastic", "52.06 ± 5.52", _recipe(s, Stochastic()), first_layer_only=True, runs=STOCHASTIC_RUNS),
    ]


def _ranges(s: Settings) -> Sequence[Row]:
    published = {"min-max": ("0.23", "61.96"), "weight MSE": ("23.99", "68.60"), "output MSE": ("42.89", "68.62")}
    estimators: dict[str, RangeEstimator[Any]] = {
        "min-max": MinMax(),
        "weight MSE": WeightMSE(),
        "output MSE": OutputMSE(),
    }
    rows = []
    for name, estimator in estimators.items():
        nearest, adaround = published[name]
        rows += [
            Row(f"{name}, nearest", nearest, _recipe(s, Nearest(), estimator)),
            Row(f"{name}, AdaRound", adaround, _recipe(s, _sgd(s), estimator), runs=None),
            Row(f"{name}, AdaRound in Gram space", "", _recipe(s, AdaRound(), estimator), runs=None),
        ]
    return rows


ADAROUND: dict[str, Table] = {
    "table1": Table(
        "Table 1: rounding the first layer by chance",
        _table1,
        "The page of the paper also has the best of the stochastic roundings, 63.06: it is the largest of ours that "
        "the journal holds.",
    ),
    "ranges": Table("Appendix: how the grid is chosen", _ranges, "The paper's figures are from its later version."),
}
