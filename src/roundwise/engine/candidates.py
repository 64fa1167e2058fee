"""What each layer of a network could become: the sizes that each method offers, what they cost, how large errors are.

1. For each layer and each method, list the sizes that are cheaper than the layer.
2. With samples: estimate how much the network's output feels each layer (`engine/sensitivity.py`), and collect the
   moments of each layer in one pass over the samples. Without: take white inputs.
3. Ask the method for the error of each size.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, fx

from roundwise.engine.answers import StreamPair
from roundwise.engine.run import Run
from roundwise.engine.sensitivity import output_metrics
from roundwise.engine.stream import Stream
from roundwise.engine.unit import generator_for
from roundwise.errors import ModelError, RecipeError
from roundwise.events import PassStarted
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.graph import Graph
from roundwise.graph.matrix import LinearMap
from roundwise.graph.unit import Unit
from roundwise.methods.compressing import Factorization, FactorizationProblem, Size
from roundwise.numerics.regression import Regression
from roundwise.recipe.compress import Compress
from roundwise.statistics import Addend, Gram
from roundwise.wording import did_you_mean, number_of

SHRINKAGE = 1.0
"""How far moments of few samples are pulled towards white inputs, as a multiple of what statistics theory advises. A
larger number keeps factors nearer to those of the weights alone."""


@final
@dataclass(frozen=True, eq=False)
class Cost:
    """What a layer or a chain of layers costs.

    Attributes:
        macs: multiplications of one sample.
        parameters: numbers in weights and biases.
    """

    macs: int
    parameters: int


@final
@dataclass(frozen=True, eq=False)
class Option:
    """One thing that a layer could become.

    Attributes:
        method, size: what makes it so.
        cost: of the chain.
        error: predicted.
    """

    method: Factorization
    size: Size
    cost: Cost
    error: float = math.nan


@final
@dataclass(frozen=True, eq=False)
class Candidate:
    """One layer, and what it could become.

    Attributes:
        layer: the layer.
        weight: its matrix, float64; empty if it has several groups.
        metric: how much the network's output feels its errors.
        cost: of the layer as it is.
        options: cheaper chains, with their errors.
        reason: why there are none.
    """

    layer: Layer
    weight: Float[Tensor, "rows cols"]
    metric: Float[Tensor, "rows rows"]
    cost: Cost
    options: tuple[Option, ...]
    reason: str = ""


def find_candidates(graph: Graph, stage: Compress, run: Run) -> list[Candidate]:
    """All layers of a network, and what each could become.

    Raises:
        ModelError: there are no layers, or a layer's weights or outputs are not finite.
        RecipeError: `keep` names no layer.
        MemoryBudgetError: the disk is full.
    """
    layers = layers_to_compress(graph, stage)
    found = [_offers(graph, layer, stage) for layer in layers]
    open_ones = [one for one in found if one.options]
    metrics, known = _white(open_ones)
    if run.has_data and open_ones:
        assert run.calibration is not None
        run.progress(PassStarted(f"measuring what {number_of(len(open_ones), 'layer')} could become"))
        generator = generator_for(run.seed, "sensitivity")
        metrics = output_metrics(graph, [one.layer for one in open_ones], run.calibration, run.device, generator)
        tasks = [_MeasureTask(Unit.of_layer(graph, one.layer), one, metrics[one.layer.name]) for one in open_ones]
        batches = list(run.calibration.batches)
        Stream(graph, batches, run.samples, tasks, keeps_inputs=True, seed=run.seed, store=run.store).run()
        errors = {task.unit.name: task.errors for task in tasks}
    else:
        errors = {one.layer.name: _errors(one, metrics[one.layer.name], known[one.layer.name]) for one in open_ones}
    return [
        one if not one.options else _with_errors(one, metrics[one.layer.name], errors[one.layer.name]) for one in found
    ]


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
    regression = Regression.white(candidate.weight, _bias(candidate.layer.map))
    return FactorizationProblem(candidate.layer.name, candidate.layer.map, regression, candidate.metric)


def regression_for(statistics: Gram, weight: Float[Tensor, "rows cols"]) -> Regression:
    """The moments that a method works from, shrunk as the number of samples demands."""
    regression = Regression.of(statistics.fit)
    return regression.shrunk(weight, regression.shrinkage_strength(SHRINKAGE))


def cost_of(parts: Sequence[LinearMap], space: Sequence[int], items: float, *, bias: bool) -> Cost:
    """The cost of layers that run one after the other.

    Args:
        parts: the layers.
        space: the spatial sizes of the input of the first.
        items: inputs of the layer that each sample gives.
        bias: whether the last one has a bias.
    """
    macs = parameters = 0
    for part in parts:
        space = part.output_space(space)
        numbers = math.prod(part.weight_shape)
        macs += numbers * math.prod(space)
        parameters += numbers
    return Cost(round(macs * items), parameters + (parts[-1].weight_shape[0] if bias else 0))


def _check_keep(keep: Sequence[str], names: Sequence[str]) -> None:
    for pattern in keep:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"keep names '{pattern}', and the network has no such layer.{did_you_mean(pattern, names)} Its layers "
                f"are {', '.join(names[:8])}{', …' if len(names) > 8 else ''}: give the name of one, or a glob."
            )


def _offers(graph: Graph, layer: Layer, stage: Compress) -> Candidate:
    """A layer with the sizes that are cheaper than it is, without errors; or with the reason why there are none."""
    linear, weight = layer.map, graph.constants[layer.weight]
    cost, unit = _cost_now(layer), "macs" if stage.macs is not None else "parameters"
    options: list[Option] = []
    reasons = _reasons(graph, layer, stage)
    if not reasons:
        space, items = _input_sizes(layer)
        for method in stage.methods:
            if reason := method.reason(linear):
                reasons.append(f"{type(method).__name__}: {reason}")
                continue
            if not isinstance(method, Factorization):
                raise RecipeError(
                    f"Compress: {method!r} is not a Factorization, so it does not say what replaces a layer. Give an "
                    "object such as SpatialSVD(), or derive its class from rw.compression.Factorization."
                )
            sizes = method.sizes(linear, stage.multiple)
            costs = [cost_of(method.parts(linear, size), space, items, bias=True) for size in sizes]
            cheaper = [
                (size, it) for size, it in zip(sizes, costs, strict=True) if getattr(it, unit) < getattr(cost, unit)
            ]
            options += [Option(method, size, it) for size, it in cheaper]
            if not cheaper:
                reasons.append(f"{type(method).__name__}: no rank that is a multiple of {stage.multiple} saves {unit}")
    groups = linear.matrix_shape[0]
    matrix = linear.to_matrix(weight)[0].double() if groups == 1 else torch.zeros(0, 0, dtype=torch.float64)
    eye = torch.eye(len(matrix), dtype=torch.float64, device=weight.device)
    energy = float(matrix.square().sum()) or 1.0
    return Candidate(layer, matrix, eye / energy, cost, tuple(options), "" if options else "; ".join(reasons))


def _reasons(graph: Graph, layer: Layer, stage: Compress) -> list[str]:
    """Why a layer is left whatever the method: a list of one clause, or of none."""
    if any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in stage.keep):
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


def _cost_now(layer: Layer) -> Cost:
    """The cost of a layer as it is, over all its calls."""
    numbers = math.prod(layer.map.weight_shape)
    macs = 0.0
    for call in layer.calls:
        # A transposed convolution multiplies each input by the whole kernel, others compute each output from it.
        source = call.args[0] if layer.map.transposed else call
        assert isinstance(source, fx.Node)
        macs += numbers * math.prod(_sizes(source)) / (_batch(source) * _channels(source, layer))
    bias = 0 if layer.map.bias is None else layer.map.bias.numel()
    return Cost(round(macs), numbers + bias)


def _input_sizes(layer: Layer) -> tuple[tuple[int, ...], float]:
    """The spatial sizes of a layer's input, and how many inputs of the layer each sample gives."""
    sizes = _sizes(layer.input)
    space = tuple(sizes[len(sizes) - layer.map.dims :]) if layer.map.dims else ()
    return space, math.prod(sizes) / (_batch(layer.input) * math.prod(space) * _channels(layer.input, layer))


def _channels(node: fx.Node, layer: Layer) -> int:
    """The number of channels of a layer's input or output."""
    sizes = _sizes(node)
    return sizes[len(sizes) - 1 - layer.map.dims]


def _sizes(node: fx.Node) -> list[int]:
    """The sizes of a tensor for the samples that the network was captured with."""
    return [int(size.node.hint) if isinstance(size, torch.SymInt) else int(size) for size in node.meta["val"].shape]


def _batch(node: fx.Node) -> int:
    """The number of samples with which the network was captured."""
    inputs = node.graph.find_nodes(op="placeholder")
    return next(_sizes(one)[0] for one in inputs if isinstance(one.meta["val"], Tensor) and one.meta["val"].dim())


def _bias(layer: LinearMap) -> Float[Tensor, "rows"]:
    return layer.bias_rows[0].double()


def _white(candidates: Sequence[Candidate]) -> tuple[dict[str, Tensor], dict[str, Regression]]:
    """The metric and the moments of each layer by its name where nothing is known of its inputs."""
    metrics = {one.layer.name: one.metric for one in candidates}
    return metrics, {one.layer.name: Regression.white(one.weight, _bias(one.layer.map)) for one in candidates}


def _errors(candidate: Candidate, metric: Tensor, regression: Regression) -> list[float]:
    """The error of each option, in order."""
    problem = FactorizationProblem(candidate.layer.name, candidate.layer.map, regression, metric)
    errors: dict[Any, float] = {}
    for method in dict.fromkeys(option.method for option in candidate.options):
        sizes = [option.size for option in candidate.options if option.method is method]
        errors.update(zip(((method, size) for size in sizes), method.errors(problem, sizes), strict=True))
    return [errors[option.method, option.size] for option in candidate.options]


def _with_errors(candidate: Candidate, metric: Tensor, errors: Sequence[float]) -> Candidate:
    options = tuple(
        Option(option.method, option.size, option.cost, error)
        for option, error in zip(candidate.options, errors, strict=True)
    )
    return Candidate(candidate.layer, candidate.weight, metric, candidate.cost, options)


@final
@dataclass(frozen=True, eq=False)
class _MeasureTask:
    """A layer whose options are measured. The stream has it solve, and `errors` then has what it found."""

    unit: Unit
    candidate: Candidate
    metric: Float[Tensor, "rows rows"]
    errors: list[float] = field(default_factory=list)

    @property
    def changes(self) -> bool:
        """False: the layer stays as it is."""
        return False

    @property
    def addend(self) -> fx.Node | None:
        """None: the targets are the layer's own outputs."""
        return None

    def statistics(self, samples: int, seed: int) -> Gram:
        """Empty moments."""
        return Gram.empty(self.unit.layer.map, samples, generator_for(seed, f"{self.unit.name}: samples"))

    def collect(
        self, statistics: Gram, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the moments."""
        (pair,) = inputs
        statistics.add(pair.current, targets, samples)

    def solve(self, statistics: Gram, seed: int) -> list[Any]:
        """Find the errors of all options; no weights change."""
        regression = regression_for(statistics, self.candidate.weight)
        self.errors.extend(_errors(self.candidate, self.metric, regression))
        return []

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the moments and for decompositions of them, at most."""
        _, rows, cols = self.unit.layer.map.matrix_shape
        return Gram.bytes_needed(self.unit.layer.map, samples, positions) + 8 * 6 * (cols + rows) ** 2

    def work(self, items_per_sample: int, samples: int) -> float:
        """Collecting moments is what takes time."""
        return Gram.forward_passes * samples * items_per_sample
