"""What each layer of a network could be replaced by: the sizes that each method offers, their costs, their errors.

1. For each layer and each method, list the sizes that are cheaper than the layer.
2. When the layer's moments are known (`engine/measuring.py`), ask the method for the error of each size.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.engine.latencies import Latencies, LayerSeconds
from roundwise.engine.measuring import matrix_of
from roundwise.errors import ModelError, RecipeError
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.costs import Costs, costs_of, costs_of_chain
from roundwise.graph.graph import Graph
from roundwise.methods.compressing import Factorization, FactorizationProblem, Pruning, Size
from roundwise.numerics.regression import Regression
from roundwise.recipe.compress import Compress, CostUnit
from roundwise.wording import did_you_mean, number_of


@final
@dataclass(frozen=True)
class Cost:
    """What a layer or a chain of layers costs.

    Attributes:
        macs: multiplications of one sample.
        parameters: numbers in weights and biases.
        latency: seconds for one sample in ONNX Runtime; NaN where the budget does not count them.
    """

    macs: int
    parameters: int
    latency: float = math.nan

    def of(self, unit: CostUnit) -> float:
        """What a budget counts of it."""
        return {"macs": self.macs, "parameters": self.parameters, "latency": self.latency}[unit]


@final
@dataclass(frozen=True, eq=False)
class Option:
    """One thing that a layer could become.

    Attributes:
        method, size: what makes it so.
        parts: the costs of the layers of the chain, without biases.
        error: predicted.
    """

    method: Factorization
    size: Size
    parts: tuple[Cost, ...]
    error: float = math.nan

    def cost(self, unit: CostUnit) -> float:
        """What the whole chain costs; biases are not counted."""
        return sum(part.of(unit) for part in self.parts)


@final
@dataclass(frozen=True, eq=False)
class Candidate:
    """One layer, and what it could become.

    Attributes:
        layer: the layer.
        weight: its matrix, float64; empty if it has several groups.
        metric: how much the network's output feels its errors.
        seconds: that it takes, where the budget counts them.
        options: cheaper chains, with their errors.
        reason: why there are none.
    """

    layer: Layer
    weight: Float[Tensor, "rows cols"]
    metric: Float[Tensor, "rows rows"]
    options: tuple[Option, ...]
    reason: str = ""
    seconds: LayerSeconds = LayerSeconds()


@final
class Candidates:
    """All layers of a network. The errors of their options are NaN until they are measured."""

    def __init__(self, graph: Graph, layers: Sequence[Layer], stage: Compress, latencies: Latencies) -> None:
        """List the options.

        Args:
            graph: the network.
            layers: all of its layers.
            stage: says with which methods.
            latencies: measures the layers and the options where the budget counts seconds.

        Raises:
            InferenceError: the budget counts seconds, and ONNX Runtime is not installed or cannot run a layer.
            ModelError: a layer's biases are not finite.
            RecipeError: a method says neither what replaces a layer nor which channels stay.
        """
        costs = costs_of(graph)
        self._found = {layer.name: _offers(graph, layer, stage, costs, latencies) for layer in layers}

    @property
    def all(self) -> list[Candidate]:
        """In the order of the layers."""
        return list(self._found.values())

    @property
    def layers(self) -> list[Layer]:
        """Those that could become something else."""
        return [one.layer for one in self.all if one.options]

    @property
    def subject(self) -> str:
        """For people who watch the run."""
        return number_of(len(self.layers), "layer")

    def take(self, layer: Layer, regression: Regression, metric: Float[Tensor, "rows rows"]) -> None:
        """Find the errors of a layer's options from its moments."""
        one = self._found[layer.name]
        problem = FactorizationProblem(layer.name, layer.map, regression, metric)
        errors: dict[Any, float] = {}
        for method in dict.fromkeys(option.method for option in one.options):
            sizes = [option.size for option in one.options if option.method is method]
            errors.update(zip(((method, size) for size in sizes), method.errors(problem, sizes), strict=True))
        options = tuple(dataclasses.replace(it, error=errors[it.method, it.size]) for it in one.options)
        self._found[layer.name] = dataclasses.replace(one, metric=metric, options=options)


def layers_to_compress(graph: Graph, stage: Compress) -> list[Layer]:
    """The layers of a network, those that the recipe keeps among them.

    Raises:
        ModelError: there are none, or weights of one are not finite.
        RecipeError: `keep` names no layer.
    """
    layers = find_layers(graph)
    if not layers:
        raise ModelError(
            f"the model has no layer to compress: among its {len(graph.operations.nodes)} operations is no linear "
            "layer and no convolution with a constant weight. Give a model that has such layers."
        )
    _check_keep(stage.keep, [layer.name for layer in layers])
    for layer in layers:
        weight = graph.constants[layer.weight]
        if not torch.isfinite(weight).all():
            raise ModelError(
                f"layer '{layer.name}' has {int((~torch.isfinite(weight)).sum())} weights that are NaN or infinite, of "
                f"{weight.numel()}. The outputs of such a network are NaN or infinite: load weights that are finite."
            )
    return layers


def white_problem(candidate: Candidate) -> FactorizationProblem:
    """The problem of a layer without samples: approximate its weights."""
    regression = Regression.white(candidate.weight, candidate.layer.map.bias_rows[0].double())
    return FactorizationProblem(candidate.layer.name, candidate.layer.map, regression, candidate.metric)


def is_kept(layer: Layer, stage: Compress) -> bool:
    """Whether the recipe says that a layer stays as it is."""
    return any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in stage.keep)


def _check_keep(keep: Sequence[str], names: Sequence[str]) -> None:
    for pattern in keep:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"keep names '{pattern}', and the network has no such layer.{did_you_mean(pattern, names)} Its layers "
                f"are {', '.join(names[:8])}{', …' if len(names) > 8 else ''}: give the name of one, or a glob."
            )


def _offers(graph: Graph, layer: Layer, stage: Compress, costs: Costs, latencies: Latencies) -> Candidate:
    """A layer with the sizes that are cheaper than it is, without errors; or with the reason why there are none."""
    linear = layer.map
    unit, _ = stage.budget
    seconds = latencies.of_layer(graph, layer) if unit == "latency" else LayerSeconds()
    whole = Cost(costs.of(layer.calls)[0], math.prod(linear.weight_shape), seconds.whole)
    options: list[Option] = []
    reasons = _reasons(graph, layer, stage)
    for method in stage.methods if not reasons else ():
        if isinstance(method, Pruning):
            continue
        if not isinstance(method, Factorization):
            raise RecipeError(
                f"Compress: {method!r} is neither a Factorization, which says what replaces a layer, nor a Pruning, "
                "which says what channels stay. Give an object such as SpatialSVD(), or derive its class from "
                "rw.compression.Factorization."
            )
        if reason := method.reason(linear):
            reasons.append(f"{type(method).__name__}: {reason}")
            continue
        found = [_option(graph, layer, method, size, unit, latencies) for size in method.sizes(linear, stage.multiple)]
        cheaper = [option for option in found if option.parts and option.cost(unit) < whole.of(unit)]
        options += cheaper
        if not all(option.parts for option in found):
            reasons.append(f"{type(method).__name__}: the size of its input depends on values")
        elif not cheaper:
            reasons.append(f"{type(method).__name__}: no rank that is a multiple of {stage.multiple} saves {unit}")
    weight = matrix_of(graph, layer) if linear.matrix_shape[0] == 1 else torch.zeros(0, 0, dtype=torch.float64)
    eye = torch.eye(len(weight), dtype=torch.float64, device=weight.device)
    return Candidate(layer, weight, eye, tuple(options), "" if options else "; ".join(reasons), seconds)


def _option(
    graph: Graph, layer: Layer, method: Factorization, size: Size, unit: CostUnit, latencies: Latencies
) -> Option:
    """A chain that could replace a layer; without parts if the size of its input depends on values."""
    parts = method.parts(layer.map, size)
    costs = [Cost(*part) for part in costs_of_chain(graph, layer.input, parts)]
    if unit == "latency" and costs:  # only whole chains are measured: each part takes its share of the multiplications
        rate = latencies.of_chain(graph, layer.input, parts) / max(1, sum(one.macs for one in costs))
        costs = [dataclasses.replace(one, latency=rate * one.macs) for one in costs]
    return Option(method, size, tuple(costs))


def _reasons(graph: Graph, layer: Layer, stage: Compress) -> list[str]:
    """Why a layer is left whatever the method: a list of one clause, or of none."""
    if is_kept(layer, stage):
        return ["the recipe keeps it"]
    if len(layer.calls) > 1:
        return [f"{len(layer.calls)} operations use its weight"]
    (weight,) = graph.operations.find_nodes(op="get_attr", target=layer.weight)
    if len(weight.users) > 1:
        return ["other operations read its weight too"]
    if layer.map.bias is not None and not layer.map.bias.isfinite().all():
        raise ModelError(
            f"layer '{layer.name}' has {int((~torch.isfinite(layer.map.bias)).sum())} biases that are NaN or infinite, "
            f"of {layer.map.bias.numel()}. These channels give NaN or infinity: load weights that are finite."
        )
    return []
