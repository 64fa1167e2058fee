"""The tables of "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020, arXiv:2004.10568).

"AdaRound" is the published procedure, `AdaRound`. Rows "in Gram space" are the default of Roundwise, `GramAdaRound`.
Most of the paper's figures are for ResNet-18 on ImageNet, 4 bits per tensor, whose float accuracy is 69.68 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from roundwise.methods.activations import ActivationMinMax
from roundwise.methods.corrections import EmpiricalBias
from roundwise.methods.interfaces import Correction, GraphRewrite, RangeEstimator, RoundingSolver
from roundwise.methods.ranges import ACIQ, MinMax, OutputMSE, WeightMSE
from roundwise.methods.rewrites import CrossLayerEqualization, HighBiasAbsorption, OutlierChannelSplitting
from roundwise.methods.rounding import (
    AdaRound,
    Ceil,
    CrossEntropyMethod,
    Floor,
    GramAdaRound,
    Nearest,
    NearestMoments,
    NearestScaled,
    Stochastic,
    StraightThrough,
)
from roundwise.numerics.grid import PerChannel
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import Activations
from roundwise.recipe.stages import Quantize, Rewrite
from roundwise.reproduction.study import Row, Settings, Table, TaskLoss

STOCHASTIC_RUNS = 100
"""As in Table 1."""

DETERMINISTIC = (Ceil, Floor, Nearest, NearestMoments, NearestScaled)
"""These give the same codes with every seed, so they are run once."""

W8 = Activations(ranges=ActivationMinMax(), adapt_rounding=False)
"""8-bit activations, in the rows "W/8"."""


def _row(
    settings: Settings,
    name: str,
    published: str,
    rounding: RoundingSolver[Any],
    *,
    ranges: RangeEstimator[Any] = WeightMSE(),
    rewrites: Sequence[GraphRewrite] = (),
    correction: Correction[Any] | None = None,
    activations: Activations | None = None,
    **row: Any,
) -> Row:
    """A row of a table. Like the paper, it folds batch-norms and rewrites nothing else unless `rewrites` says so."""
    weights = dataclasses.replace(settings.weights, ranges=ranges)
    recipe = Recipe(
        (
            Rewrite(rewrites),
            Quantize(weights=weights, rounding=rounding, activations=activations, correction=correction),
        )
    )
    return Row(name, published, recipe, **{"runs": 1 if isinstance(rounding, DETERMINISTIC) else None, **row})


def _sgd(settings: Settings, **changes: Any) -> AdaRound:
    return AdaRound(iterations=settings.iterations, **changes)


def _layer_wise(settings: Settings, *, first: bool = False, **changes: Any) -> AdaRound:
    """Eq. 21, before the asymmetric objective; for all layers, or for rows that quantize the first layer alone."""
    iterations = (first and settings.first_layer_iterations) or settings.iterations
    return AdaRound(iterations=iterations, asymmetric=False, activation_aware=False, **changes)


def _table1(s: Settings) -> Sequence[Row]:
    return [
        _row(s, "nearest", "52.29", Nearest(), first_layer_only=True),
        _row(s, "ceil", "0.10", Ceil(), first_layer_only=True),
        _row(s, "floor", "0.10", Floor(), first_layer_only=True),
        _row(s, "stochastic", "52.06 ± 5.52", Stochastic(), first_layer_only=True, runs=STOCHASTIC_RUNS, best="63.06"),
    ]


def _table2(s: Settings) -> Sequence[Row]:
    def first_layer(name: str, published: str, rounding: RoundingSolver[Any], **row: Any) -> Row:
        return _row(s, f"{name}, first layer", published, rounding, first_layer_only=True, **row)

    cross_entropy, tabu = TaskLoss(), TaskLoss("tabu")
    return [
        first_layer("nearest", "52.29", Nearest()),
        first_layer("task loss (cross-entropy method)", "68.62 ± 0.17", Nearest(), runs=None, task_loss=cross_entropy),
        first_layer("task loss (tabu search)", "", Nearest(), runs=None, task_loss=tabu),
        first_layer("local MSE (cross-entropy method)", "69.39 ± 0.04", CrossEntropyMethod()),
        first_layer("continuous relaxation", "69.58 ± 0.03", _layer_wise(s, first=True)),
        _row(s, "nearest, all layers", "23.99", Nearest()),
        _row(s, "local MSE, all layers", "65.83 ± 0.14", CrossEntropyMethod()),
        _row(s, "continuous relaxation, all layers", "66.56 ± 0.12", _layer_wise(s)),
    ]


def _table3(s: Settings) -> Sequence[Row]:
    rows = []
    for name, relaxation, published_first, published in (
        ("sigmoid + T annealing", "sigmoid-temperature", "69.31 ± 0.21", "65.22 ± 0.67"),
        ("sigmoid + f_reg", "sigmoid", "69.58 ± 0.03", "66.25 ± 0.15"),
        ("rectified sigmoid + f_reg", "rectified-sigmoid", "69.58 ± 0.03", "66.56 ± 0.12"),
    ):
        one, all_layers = (_layer_wise(s, first=first, relaxation=relaxation) for first in (True, False))
        rows.append(_row(s, f"{name}, first layer", published_first, one, first_layer_only=True))
        rows.append(_row(s, f"{name}, all layers", published, all_layers))
    return rows


def _table4(s: Settings) -> Sequence[Row]:
    return [
        _row(s, "layer wise", "66.56 ± 0.12", _layer_wise(s)),
        _row(s, "asymmetric", "68.37 ± 0.07", _sgd(s, activation_aware=False)),
        _row(s, "asymmetric + ReLU", "68.60 ± 0.09", _sgd(s)),
        _row(s, "in Gram space, asymmetric", "", GramAdaRound(alternations=0)),
        _row(s, "in Gram space, asymmetric + ReLU", "", GramAdaRound()),
    ]


def _table5(s: Settings) -> Sequence[Row]:
    return [
        _row(s, "nearest", "23.99", Nearest()),
        _row(s, "STE", "66.63 ± 0.06", StraightThrough(iterations=s.iterations)),
        _row(s, "AdaRound", "68.60 ± 0.09", _sgd(s)),
        _row(s, "AdaRound in Gram space", "", GramAdaRound()),
    ]


def _table6(s: Settings) -> Sequence[Row]:
    return [
        _row(s, "nearest", "23.99", Nearest()),
        _row(s, "bias correction", "38.87", Nearest(), correction=EmpiricalBias()),
        _row(s, "AdaRound", "68.60 ± 0.09", _sgd(s)),
        _row(s, "AdaRound in Gram space", "", GramAdaRound()),
    ]


def _table7(s: Settings) -> Sequence[Row]:
    by_channel = dataclasses.replace(s, granularity=PerChannel())
    corrected: dict[str, Any] = {"correction": EmpiricalBias(), "activations": W8}
    dfq, banner = "equalization and bias correction, after DFQ, W/8", "bias correction of Banner et al., W*/8"
    return [
        _row(s, "nearest, W/32", "23.99", Nearest()),
        _row(by_channel, "OMSE+opt, W*/32", "67.12", NearestScaled()),
        _row(s, "OCS, W/32", "", Nearest(), ranges=MinMax(), rewrites=(OutlierChannelSplitting(bits=s.bits),)),
        _row(s, "AdaRound, W/32", "68.71 ± 0.06", _sgd(s)),
        _row(s, "AdaRound in Gram space, W/32", "", GramAdaRound()),
        _row(s, dfq, "38.98", Nearest(), rewrites=(CrossLayerEqualization(),), **corrected),
        _row(by_channel, banner, "67.4", NearestMoments(), ranges=ACIQ(), **corrected),
        _row(s, "AdaRound, W/8", "68.55 ± 0.01", _sgd(s), activations=W8),
        _row(s, "AdaRound in Gram space, W/8", "", GramAdaRound(), activations=W8),
        _row(s, "AdaRound in Gram space, W/8, rounding adapts", "", GramAdaRound(), activations=Activations()),
    ]


def _table7_equalized(s: Settings) -> Sequence[Row]:
    """For networks whose channels differ much. Each row has one run, since these networks are large."""
    equalized = (CrossLayerEqualization(),)
    absorbed = (*equalized, HighBiasAbsorption())  # without it, some activations are as large as millions
    gram = GramAdaRound()
    return [
        _row(s, "nearest, W/32", "", Nearest()),
        _row(s, "DFQ, W/8", "46.57", Nearest(), rewrites=absorbed, correction=EmpiricalBias(), activations=W8),
        _row(s, "AdaRound in Gram space, W/32", "", gram, runs=1),
        _row(s, "equalization, AdaRound in Gram space, W/32", "69.78 ± 0.05", gram, rewrites=equalized, runs=1),
        _row(
            s,
            "equalization, absorption, AdaRound in Gram space, W/8",
            "69.25 ± 0.06",
            gram,
            rewrites=absorbed,
            activations=W8,
            runs=1,
        ),
    ]


def _table8(s: Settings) -> Sequence[Row]:
    return [
        _row(s, "nearest, W/8", "6.09", Nearest(), activations=W8),
        _row(s, "AdaRound, W/32", "70.89 ± 0.33", _sgd(s)),
        _row(s, "AdaRound, W/8", "70.86 ± 0.37", _sgd(s), activations=W8),
        _row(s, "AdaRound in Gram space, W/8", "", GramAdaRound(), activations=W8),
    ]


def _ranges(s: Settings) -> Sequence[Row]:
    rows = []
    for name, ranges, nearest, adaround in (
        ("min-max", MinMax(), "", ""),
        ("weight MSE", WeightMSE(), "23.99", "68.60 ± 0.09"),
        ("output MSE", OutputMSE(), "", ""),
    ):
        rows.append(_row(s, f"{name}, nearest", nearest, Nearest(), ranges=ranges))
        rows.append(_row(s, f"{name}, AdaRound", adaround, _sgd(s), ranges=ranges))
        rows.append(_row(s, f"{name}, AdaRound in Gram space", "", GramAdaRound(), ranges=ranges))
    return rows


ADAROUND: dict[str, Table] = {
    "table1": Table("Table 1: rounding the first layer by chance", _table1),
    "table2": Table(
        "Table 2: from the task loss to the local loss",
        _table2,
        "The Hessian of the task loss is the Gauss-Newton one, of up to 256 calibration images, with the float "
        "network's own classes as labels. The paper's appendix has a tabu search by another package, which falls "
        "behind nearest rounding.",
    ),
    "table3": Table("Table 3: how the choice is relaxed", _table3),
    "table4": Table("Table 4: what the reconstruction compares", _table4),
    "table5": Table("Table 5: straight-through estimator", _table5),
    "table6": Table("Table 6: bias correction", _table6),
    "table7": Table(
        "Table 7: beside other methods",
        _table7,
        "W is the bits of weights, * per channel. The row after DFQ has its equalization and bias correction by "
        "calibration images in place of batch norm's statistics; the paper's 8-bit row of DFQ is not run. OCS's "
        "published figures are for other networks.",
    ),
    "table7-equalized": Table(
        "Table 7: MobileNetV2, and DFQ",
        _table7_equalized,
        "W is the bits of weights. DFQ's bias correction is by calibration images here; `papers/dfq_2019` does without "
        "any. The paper's AdaRound is by minibatches, and equalization is in its rows too.",
        paper="MobileNetV2, ImageNet",
        published_float="71.72",
    ),
    "table8": Table(
        "Table 8: segmentation",
        _table8,
        "Mean IoU, if the test data has masks.",
        paper="DeepLabV3+ with MobileNetV2, Pascal VOC",
        published_float="72.94",
    ),
    "ranges": Table("Appendix: how the grid is chosen", _ranges),
}
