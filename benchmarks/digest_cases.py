"""The cases of `digests.py`: which networks are quantized with which recipes, and what these are made of.

Solvers get few iterations: enough to run each of their parts, too few for good results. Names of cases stay as they
are, whatever the classes are called, since recordings are compared by them: `gram-adaround` is the solver that
minimizes AdaRound's objective from second moments, `adaround` the paper's procedure on minibatches.

`resnet20` and its images lie outside the project (see `networks.py`); the small networks do not need them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import networks
import small_networks
import torch
from torch import Tensor

import roundwise as rw
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.testing import quick

QUICK = ("resnet20/4bit/channel/gram-adaround", "resnet20/3bit/tensor/gptq", "resnet20/activations/mse/adapt/nearest")
"""The cases of `resnet20` among the quick ones; all cases of small networks are quick."""

FRESH = 32
"""Inputs on which outputs are taken; they come after the calibration samples."""

# --------------------------------------------------------------------------------------------- what recipes are made of

FEW: dict[str, Any] = {
    "gram-adaround": rw.rounding.GramAdaRound(iterations=40),
    "adaround": rw.rounding.AdaRound(iterations=20, batch_size=8),
    "coordinate-descent": rw.rounding.CoordinateDescent(sweeps=5),
    "cross-entropy-method": rw.rounding.CrossEntropyMethod(iterations=3, samples=20),
    "straight-through": rw.rounding.StraightThrough(iterations=20, batch_size=8),
    "tabu-search": rw.rounding.TabuSearch(moves=20),
}
"""Solvers with few iterations."""

SOLVERS: dict[str, Any] = {name: FEW[name] if name in FEW else quick(kind) for name, kind in ROUNDING_SOLVERS.items()}
"""Every solver of the table, so that a new one needs no line here."""

VARIANTS: dict[str, Any] = {
    "gram-adaround-as-by-default": rw.rounding.GramAdaRound(),
    "gram-adaround-papers-choices": rw.rounding.GramAdaRound(
        iterations=40, any_code=False, free_bias=False, fit_scale=False
    ),
    "gram-adaround-all-choices": rw.rounding.GramAdaRound(iterations=40, any_code=True, free_bias=True, fit_scale=True),
    "gram-adaround-addition-aware": rw.rounding.GramAdaRound(iterations=40, addition_aware=True),
    "gram-adaround-no-turns": rw.rounding.GramAdaRound(iterations=40, alternations=0),
    "gram-adaround-undamped-no-walk": rw.rounding.GramAdaRound(iterations=40, shrinkage=0, tabu_moves_per_column=0),
    "adaround-sigmoid": replace(SOLVERS["adaround"], relaxation="sigmoid"),
    "adaround-temperature": replace(SOLVERS["adaround"], relaxation="sigmoid-temperature"),
    "adaround-symmetric-linear": replace(SOLVERS["adaround"], asymmetric=False, activation_aware=False),
    "coordinate-descent-bias": rw.rounding.CoordinateDescent(sweeps=5, any_code=False, free_bias=True),
    "cross-entropy-method-bias": replace(SOLVERS["cross-entropy-method"], free_bias=True),
    "gptq-in-order": rw.rounding.GPTQ(by_importance=False, free_bias=True),
    "straight-through-linear": replace(SOLVERS["straight-through"], activation_aware=False),
    "tabu-search-bias": rw.rounding.TabuSearch(moves=20, any_code=False, free_bias=True),
}
RANGES: dict[str, Any] = {
    "aciq": rw.ranges.ACIQ(),
    "aciq-gauss": rw.ranges.ACIQ("gauss"),
    "aciq-laplace": rw.ranges.ACIQ("laplace"),
    "min-max": rw.ranges.MinMax(),
    "output-mse": rw.ranges.OutputMSE(candidates=20),
    "weight-mse": rw.ranges.WeightMSE(),
}
ACTIVATIONS: dict[str, Any] = {
    "batch-norm": rw.activations.ActivationBatchNorm(input_low=-2.2, input_high=2.7),
    "min-max": rw.activations.ActivationMinMax(),
    "moving-average": rw.activations.ActivationMovingAverage(),
    "mse": rw.activations.ActivationMSE(),
    "percentile": rw.activations.ActivationPercentile(),
}
CORRECTIONS: dict[str, Any] = {
    "analytic-bias": rw.corrections.AnalyticBias(),
    "empirical-bias": rw.corrections.EmpiricalBias(),
}
EQUALIZE, ABSORB = rw.rewrites.CrossLayerEqualization(), rw.rewrites.HighBiasAbsorption(deviations=0.5)
REWRITES: dict[str, tuple[Any, ...]] = {
    "none": (),
    "equalize": (EQUALIZE,),
    "equalize-keep-clamps": (replace(EQUALIZE, relu6="keep"),),
    "equalize-relu": (replace(EQUALIZE, relu6="relu"),),
    "equalize-absorb": (EQUALIZE, ABSORB),
    "absorb-data": (replace(ABSORB, moments="data"),),
    "absorb-not-across-padding": (EQUALIZE, replace(ABSORB, across_padding=False)),
    "split": (rw.rewrites.OutlierChannelSplitting(ratio=0.05),),
    "split-bits": (rw.rewrites.OutlierChannelSplitting(ratio=0.05, bits=4), EQUALIZE),
}
GRANULARITIES: dict[str, Any] = {"tensor": rw.PerTensor(), "channel": rw.PerChannel()}


def recipe(
    rounding: Any = SOLVERS["gram-adaround"],
    *,
    bits: int = 4,
    granularity: Any = GRANULARITIES["channel"],
    symmetric: bool = True,
    ranges: Any = RANGES["weight-mse"],
    activations: Any = None,
    activation_bits: int = 8,
    activation_symmetric: bool = False,
    adapt: bool = True,
    overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
    correction: Any = None,
    rewrites: Any = None,
    **others: Any,
) -> rw.Recipe:
    """The recipe for these choices; `overrides` holds settings of `Weights` by layer, None for a layer in float."""
    stage = rw.Quantize(
        rw.Weights(bits, granularity, symmetric, ranges),
        rounding,
        activations=activations and rw.Activations(activation_bits, activation_symmetric, activations, adapt),
        correction=correction,
        overrides={
            name: None if settings is None else rw.Weights(**settings) for name, settings in (overrides or {}).items()
        },
    )
    return rw.Recipe((rw.Rewrite(rewrites), stage), **others)


DEFAULT, DATA_FREE = rw.Recipe(), rw.Recipe.data_free()

# ----------------------------------------------------------------------------------------------------------- the cases


@dataclass(frozen=True)
class Subject:
    """A network, captured once for all recipes, with inputs to calibrate on and to take outputs of."""

    model: rw.Network
    calibration: Tensor
    fresh: Tensor


@cache
def subject(network: str, dtype: torch.dtype, samples: int) -> Subject:
    """`resnet20`, or one of the small networks."""
    if network == "resnet20":
        task = networks.load(network, samples + FRESH)
        model, inputs = task.model, task.calibration
    else:
        model, shape = small_networks.load(network)
        inputs = torch.randn(samples + FRESH, *shape)
    model, inputs = model.to(dtype), inputs.to(dtype)
    return Subject(rw.capture(model, inputs[:2]), inputs[:samples], inputs[samples:])


@dataclass(frozen=True)
class Case:
    """A network and a recipe, with this many calibration samples; with 0, the network's inputs are only described."""

    network: str
    recipe: rw.Recipe
    samples: int = 64
    dtype: torch.dtype = torch.float32

    def run(self) -> tuple[rw.Model, Tensor]:
        """The quantized network, and the inputs to take its outputs on."""
        it = subject(self.network, self.dtype, self.samples)
        data = it.calibration if self.samples else rw.DataFree(tuple(it.fresh.shape[1:]))
        return rw.quantize(it.model, data, self.recipe), it.fresh


def is_quick(name: str) -> bool:
    """Whether a case is one of those that take half a minute together."""
    return name.startswith("small/") or name in QUICK


def cases() -> dict[str, Case]:
    """All cases by name; those of small networks first."""
    return dict([*_small_cases(), *(("resnet20/" + name, case) for name, case in _resnet20_cases())])


def _small_cases() -> Iterator[tuple[str, Case]]:
    nearest, tensor, mse = SOLVERS["nearest"], GRANULARITIES["tensor"], ACTIVATIONS["mse"]
    for name in small_networks.SMALL:
        yield f"small/{name}/default", Case(name, DEFAULT)
        yield f"small/{name}/gptq", Case(name, recipe(SOLVERS["gptq"], bits=3))
        yield f"small/{name}/activations", Case(name, recipe(bits=8, activations=mse))
        asymmetric = recipe(
            nearest, granularity=tensor, symmetric=False, activations=ACTIVATIONS["min-max"], adapt=False
        )
        yield f"small/{name}/tensor-asymmetric", Case(name, asymmetric)
        yield f"small/{name}/data-free", Case(name, DATA_FREE, samples=0)
    for name, size in {"conv1d": 3, "conv2d": 3, "conv3d": 4, "transposed": 3, "attention": 4}.items():
        made = recipe(SOLVERS["gptq"], granularity=rw.PerGroup(size), symmetric=False)
        yield f"small/{name}/group-asymmetric", Case(name, made)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        made = recipe(granularity=tensor, activations=mse)
        yield f"small/mobile/{str(dtype).removeprefix('torch.')}", Case("mobile", made, dtype=dtype)
    for name, rewrites in REWRITES.items():
        yield f"small/mobile/rewrites/{name}", Case("mobile", recipe(nearest, granularity=tensor, rewrites=rewrites))


def _resnet20_cases() -> Iterator[tuple[str, Case]]:
    def case(*arguments: Any, **more: Any) -> Case:
        return Case("resnet20", recipe(*arguments, **more))

    yield "default", Case("resnet20", DEFAULT)
    nearest, channel, tensor = SOLVERS["nearest"], GRANULARITIES["channel"], GRANULARITIES["tensor"]
    for bits in (4, 3, 2):
        for where, granularity in GRANULARITIES.items():
            for name, solver in SOLVERS.items():
                yield f"{bits}bit/{where}/{name}", case(solver, bits=bits, granularity=granularity)
    for name, solver in VARIANTS.items():
        yield f"variant/{name}", case(solver, bits=3)
    by_channel = {"conv1": {"granularity": channel}}
    for name in ("gram-adaround", "adaround", "gptq", "nearest", "nearest-scaled", "tabu-search"):
        yield f"group/{name}", case(SOLVERS[name], granularity=rw.PerGroup(16), overrides=by_channel)
    for name, ranges in ACTIVATIONS.items():
        for adapt in (True, False):
            for solver in ("gram-adaround", "nearest"):
                way = "adapt" if adapt else "after"
                yield f"activations/{name}/{way}/{solver}", case(SOLVERS[solver], activations=ranges, adapt=adapt)
    yield "activations/symmetric", case(nearest, activations=ACTIVATIONS["mse"], activation_symmetric=True)
    yield "activations/4bit", case(SOLVERS["adaround"], activations=ACTIVATIONS["mse"], activation_bits=4)
    yield "activations/tensor", case(SOLVERS["gptq"], granularity=tensor, activations=ACTIVATIONS["percentile"])
    for name, ranges in RANGES.items():
        for where, granularity in GRANULARITIES.items():
            yield f"ranges/{name}/{where}", case(nearest, bits=3, ranges=ranges, granularity=granularity)
        yield f"ranges/{name}/asymmetric", case(nearest, bits=3, ranges=ranges, symmetric=False)
    for name, correction in CORRECTIONS.items():
        yield f"correction/{name}", case(nearest, correction=correction)
        more = {"granularity": tensor, "activations": ACTIVATIONS["min-max"], "adapt": False}
        yield f"correction/{name}/activations", case(SOLVERS["gptq"], correction=correction, **more)
    for name, rewrites in REWRITES.items():
        yield f"rewrites/{name}", case(SOLVERS["nearest-scaled"], granularity=tensor, rewrites=rewrites)
    for name in ("gram-adaround", "adaround", "gptq", "tabu-search"):
        yield f"asymmetric/{name}", case(SOLVERS[name], symmetric=False)
    for bits in (5, 6, 8, 16):
        yield f"{bits}bit/gptq", case(SOLVERS["gptq"], bits=bits)
    overrides = {
        "conv1": None,
        "layer2.*": {"bits": 8, "symmetric": False},
        "layer2.0.conv2": {"bits": 2, "rounding": SOLVERS["tabu-search"]},
        "linear": {"bits": 8, "granularity": tensor},
    }
    yield "overrides", case(SOLVERS["gptq"], bits=3, overrides=overrides)
    yield "overrides/activations", case(bits=3, overrides=overrides, activations=ACTIVATIONS["mse"])
    for name in ("gram-adaround", "adaround", "cross-entropy-method", "stochastic"):
        yield f"seed/{name}", case(SOLVERS[name], bits=3, seed=1)
    yield "batch-size", case(bits=3, batch_size=7)
    yield "spilled", case(bits=3, memory_budget=100_000)
    yield "spilled/adaround", case(SOLVERS["adaround"], bits=3, memory_budget=0, activations=ACTIVATIONS["mse"])
    yield "samples/320", Case("resnet20", recipe(nearest), samples=320)
    yield "samples/9", Case("resnet20", recipe(), samples=9)
    yield "bfloat16", replace(case(SOLVERS["gptq"], activations=ACTIVATIONS["mse"]), samples=16, dtype=torch.bfloat16)
    free = {"correction": CORRECTIONS["analytic-bias"], "rewrites": REWRITES["equalize-absorb"]}
    yield "data-free/default", Case("resnet20", DATA_FREE, samples=0)
    for bits in (8, 6):
        for where, granularity in GRANULARITIES.items():
            for kind, ranges in (("float", None), ("quantized", ACTIVATIONS["batch-norm"])):
                made = recipe(nearest, bits=bits, granularity=granularity, activations=ranges, **free)
                yield f"data-free/{bits}bit/{where}/{kind}", Case("resnet20", made, samples=0)
    moments = recipe(SOLVERS["nearest-moments"], granularity=tensor, symmetric=False, **free)
    yield "data-free/nearest-moments", Case("resnet20", moments, samples=0)
