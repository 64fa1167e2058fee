"""The tables of "Up or Down? Adaptive Rounding for Post-Training Quantization" (ICML 2020, arXiv:2004.10568).

Rows named "AdaRound" are the published procedure, `AdaRound`; rows "in Gram space" are the default, `GramAdaRound`.
Figures in the column of the paper are for ResNet-18 on ImageNet, 4 bits per tensor, whose float accuracy is 69.68 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from roundwise.methods.activations import ActivationMinMax
from roundwise.methods.corrections import EmpiricalBias
from roundwise.methods.interfaces import GraphRewrite, RangeEstimator, RoundingSolver
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
from roundwise.recipe.settings import Activations, Recipe
from roundwise.reproduction.study import Row, Settings, Table, TaskLoss

STOCHASTIC_RUNS = 100
"""As in Table 1."""


def _recipe(
    settings: Settings,
    rounding: RoundingSolver[Any],
    ranges: RangeEstimator[Any] = WeightMSE(),
    rewrites: Sequence[GraphRewrite] = (),
    **more: Any,
) -> Recipe:
    """The paper folds batch-norms and rewrites nothing else, unless a row says so."""
    weights = dataclasses.replace(settings.weights, ranges=ranges)
    return Recipe(weights=weights, rounding=rounding, rewrites=rewrites, **more)


def _sgd(settings: Settings, **changes: Any) -> AdaRound:
    return AdaRound(iterations=settings.iterations, **changes)


def _layer_wise(settings: Settings, *, first: bool = False, **changes: Any) -> AdaRound:
    """Eq. 21, as in the tables before the asymmetric objective; for all layers or for the first alone."""
    iterations = settings.first_layer_iterations if first else None
    return AdaRound(iterations=iterations or settings.iterations, asymmetric=False, activation_aware=False, **changes)


def _table1(s: Settings) -> Sequence[Row]:
    return [
        Row("nearest", "52.29", _recipe(s, Nearest()), first_layer_only=True),
        Row("ceil", "0.10", _recipe(s, Ceil()), first_layer_only=True),
        Row("floor", "0.10", _recipe(s, Floor()), first_layer_only=True),
        Row("stochastic", "52.06 ± 5.52", _recipe(s, Stochastic()), True, runs=STOCHASTIC_RUNS, best="63.06"),
    ]


def _table2(s: Settings) -> Sequence[Row]:
    return [
        Row("nearest, first layer", "52.29", _recipe(s, Nearest()), first_layer_only=True),
        Row(
            "task loss (cross-entropy method), first layer",
            "68.62 ± 0.17",
            _recipe(s, Nearest()),
            True,
            None,
            task_loss=TaskLoss(),
        ),
        Row("task loss (tabu search), first layer", "", _recipe(s, Nearest()), True, None, task_loss=TaskLoss("tabu")),
        Row(
            "local MSE (cross-entropy method), first layer",
            "69.39 ± 0.04",
            _recipe(s, CrossEntropyMethod()),
            True,
            None,
        ),
        Row("continuous relaxation, first layer", "69.58 ± 0.03", _recipe(s, _layer_wise(s, first=True)), True, None),
        Row("nearest, all layers", "23.99", _recipe(s, Nearest())),
        Row("local MSE, all layers", "65.83 ± 0.14", _recipe(s, CrossEntropyMethod()), runs=None),
        Row("continuous relaxation, all layers", "66.56 ± 0.12", _recipe(s, _layer_wise(s)), runs=None),
    ]


def _table3(s: Settings) -> Sequence[Row]:
    rows = []
    for name, relaxation, published_first, published in (
        ("sigmoid + T annealing", "sigmoid-temperature", "69.31 ± 0.21", "65.22 ± 0.67"),
        ("sigmoid + f_reg", "sigmoid", "69.58 ± 0.03", "66.25 ± 0.15"),
        ("rectified sigmoid + f_reg", "rectified-sigmoid", "69.58 ± 0.03", "66.56 ± 0.12"),
    ):
        one, all_layers = (_layer_wise(s, first=first, relaxation=relaxation) for first in (True, False))
        rows.append(Row(f"{name}, first layer", published_first, _recipe(s, one), True, None))
        rows.append(Row(f"{name}, all layers", published, _recipe(s, all_layers), runs=None))
    return rows


def _table4(s: Settings) -> Sequence[Row]:
    return [
        Row("layer wise", "66.56 ± 0.12", _recipe(s, _layer_wise(s)), runs=None),
        Row("asymmetric", "68.37 ± 0.07", _recipe(s, _sgd(s, activation_aware=False)), runs=None),
        Row("asymmetric + ReLU", "68.60 ± 0.09", _recipe(s, _sgd(s)), runs=None),
        Row("in Gram space, asymmetric", "", _recipe(s, GramAdaRound(alternations=0)), runs=None),
        Row("in Gram space, asymmetric + ReLU", "", _recipe(s, GramAdaRound()), runs=None),
    ]


def _table5(s: Settings) -> Sequence[Row]:
    return [
        Row("nearest", "23.99", _recipe(s, Nearest())),
        Row("STE", "66.63 ± 0.06", _recipe(s, StraightThrough(iterations=s.iterations)), runs=None),
        Row("AdaRound", "68.60 ± 0.09", _recipe(s, _sgd(s)), runs=None),
        Row("AdaRound in Gram space", "", _recipe(s, GramAdaRound()), runs=None),
    ]


def _table6(s: Settings) -> Sequence[Row]:
    return [
        Row("nearest", "23.99", _recipe(s, Nearest())),
        Row("bias correction", "38.87", _recipe(s, Nearest(), correction=EmpiricalBias())),
        Row("AdaRound", "68.60 ± 0.09", _recipe(s, _sgd(s)), runs=None),
        Row("AdaRound in Gram space", "", _recipe(s, GramAdaRound()), runs=None),
    ]


def _table7(s: Settings) -> Sequence[Row]:
    activations = Activations(ranges=ActivationMinMax(), adapt_rounding=False)
    by_channel = dataclasses.replace(s, granularity=PerChannel())
    splitting = OutlierChannelSplitting(bits=s.bits)
    return [
        Row("nearest, W/32", "23.99", _recipe(s, Nearest())),
        Row("OMSE+opt, W*/32", "67.12", _recipe(by_channel, NearestScaled())),
        Row("OCS, W/32", "", _recipe(s, Nearest(), MinMax(), rewrites=(splitting,))),
        Row("AdaRound, W/32", "68.71 ± 0.06", _recipe(s, _sgd(s)), runs=None),
        Row("AdaRound in Gram space, W/32", "", _recipe(s, GramAdaRound()), runs=None),
        Row(
            "equalization and bias correction, after DFQ, W/8",
            "38.98",
            _recipe(
                s,
                Nearest(),
                correction=EmpiricalBias(),
                rewrites=(CrossLayerEqualization(),),
                activations=activations,
            ),
        ),
        Row(
            "bias correction of Banner et al., W*/8",
            "67.4",
            _recipe(by_channel, NearestMoments(), ACIQ(), correction=EmpiricalBias(), activations=activations),
        ),
        Row("AdaRound, W/8", "68.55 ± 0.01", _recipe(s, _sgd(s), activations=activations), runs=None),
        Row("AdaRound in Gram space, W/8", "", _recipe(s, GramAdaRound(), activations=activations), runs=None),
        Row(
            "AdaRound in Gram space, W/8, rounding adapts",
            "",
            _recipe(s, GramAdaRound(), activations=Activations()),
            runs=None,
        ),
    ]


def _table7_equalized(s: Settings) -> Sequence[Row]:
    """For networks whose channels differ much: each row has one run, since they are the large ones."""
    activations = Activations(ranges=ActivationMinMax(), adapt_rounding=False)
    equalized = (CrossLayerEqualization(),)
    absorbed = (*equalized, HighBiasAbsorption())  # else some activations are as large as millions
    dfq = _recipe(s, Nearest(), rewrites=absorbed, correction=EmpiricalBias(), activations=activations)
    return [
        Row("nearest, W/32", "", _recipe(s, Nearest())),
        Row("DFQ, W/8", "46.57", dfq),
        Row("AdaRound in Gram space, W/32", "", _recipe(s, GramAdaRound())),
        Row(
            "equalization, AdaRound in Gram space, W/32", "69.78 ± 0.05", _recipe(s, GramAdaRound(), rewrites=equalized)
        ),
        Row(
            "equalization, absorption, AdaRound in Gram space, W/8",
            "69.25 ± 0.06",
            _recipe(s, GramAdaRound(), rewrites=absorbed, activations=activations),
        ),
    ]


def _table8(s: Settings) -> Sequence[Row]:
    activations = Activations(ranges=ActivationMinMax(), adapt_rounding=False)
    return [
        Row("nearest, W/8", "6.09", _recipe(s, Nearest(), activations=activations)),
        Row("AdaRound, W/32", "70.89 ± 0.33", _recipe(s, _sgd(s)), runs=None),
        Row("AdaRound, W/8", "70.86 ± 0.37", _recipe(s, _sgd(s), activations=activations), runs=None),
        Row("AdaRound in Gram space, W/8", "", _recipe(s, GramAdaRound(), activations=activations), runs=None),
    ]


def _ranges(s: Settings) -> Sequence[Row]:
    rows = []
    for name, estimator, nearest in (
        ("min-max", MinMax(), ""),
        ("weight MSE", WeightMSE(), "23.99"),
        ("output MSE", OutputMSE(), ""),
    ):
        rows += [
            Row(f"{name}, nearest", nearest, _recipe(s, Nearest(), estimator)),
            Row(f"{name}, AdaRound", "68.60 ± 0.09" if nearest else "", _recipe(s, _sgd(s), estimator), runs=None),
            Row(f"{name}, AdaRound in Gram space", "", _recipe(s, GramAdaRound(), estimator), runs=None),
        ]
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
