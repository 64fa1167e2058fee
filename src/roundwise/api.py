"""The main job, one line per arrow of the picture.

model ─capture─▶ graph ─normalize, rewrites─▶ graph ─stream─▶ codes and grids ─emit─▶ quantized model
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from roundwise.artifacts.emit import QuantizedWeight, emit, packed_bits
from roundwise.artifacts.model import Model, versions
from roundwise.engine.calibration import DataFree, read_calibration, take
from roundwise.engine.network import Network, facts_of, graph_of
from roundwise.engine.passes import run_passes, run_without_data
from roundwise.engine.store import ActivationStore, default_budget
from roundwise.engine.torch_state import isolated_torch_state
from roundwise.engine.unit import LayerTask
from roundwise.errors import CalibrationError, ModelError, RecipeError
from roundwise.events import Progress
from roundwise.graph.analysis.layers import Layer, find_layers
from roundwise.graph.analysis.moments import Known, expected_columns, propagate, with_measured_moments
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.drop_dropout import drop_dropout
from roundwise.graph.transforms.normalize import normalize
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import ALWAYS, REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.numerics.grid import check_groups
from roundwise.recipe.settings import Recipe, Weights, granularity_name
from roundwise.report import KeptFloat, Report
from roundwise.statistics import ExpectedMeans

MEASURED = 32
"""Samples that rewrites see which measure how outputs of layers are distributed: each has many places."""


def quantize(
    model: nn.Module | ExportedProgram | Network,
    calibration: Any,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
) -> Model:
    """Quantize a trained network's weights, choosing for each whether to round up or down.

    Args:
        model: any module that `torch.export` can capture, of any floating-point dtype; it is left as it is, and the
            result shares no memory with it. Or a program that was exported already; or, for several recipes in turn,
            what `capture` makes of either.
        calibration: a few hundred unlabelled inputs: a tensor or array `[samples, …]`; a tuple (positional inputs) or
            dict (named inputs) of them; or an iterable of batches of these, such as a `DataLoader`. Labels are dropped
            (see `engine/calibration.py` for the rule). Or `DataFree(…)` where there is none; no error is then measured.
        recipe: what to do; by default 4-bit weights per channel and AdaRound for every layer, and without data
            `Recipe.data_free()`.
        progress: called with an `Event` as the run goes; `print` will do.

    Returns:
        The quantized network, with its report.

    Raises:
        CalibrationError: no samples, or samples that are not finite, not alike, or not the model's inputs.
        CaptureError: the model cannot be captured as a graph; the message says where and what to do.
        ModelError: no layer to quantize, weights that are not finite, or parameters on several devices.
        RecipeError: the recipe does not fit the model, or needs data where there are none.
        MemoryBudgetError: activations would fit neither in memory nor on disk.

    Example:
        >>> import roundwise as rw
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
        >>> recipe = rw.Recipe(rounding=rw.rounding.Nearest())
        >>> quantized = rw.quantize(model, torch.randn(16, 3, 8, 8), recipe)
        >>> quantized(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 8, 6, 6])
    """
    no_data = calibration if isinstance(calibration, DataFree) else None
    if recipe is None:
        recipe = Recipe() if no_data is None else Recipe.data_free()
    _check_recipe(recipe)
    facts = facts_of(model)
    device = facts.device
    budget = default_budget(device) if recipe.memory_budget is None else recipe.memory_budget
    begin = time.perf_counter()
    with isolated_torch_state(device), ActivationStore(budget, device) as store:
        inputs = calibration if no_data is None else no_data.samples(facts.dtype, facts.signature.batch or 2)
        samples = read_calibration(inputs, facts.signature, recipe.batch_size, store)
        read = time.perf_counter()
        args, kwargs = samples.example(2, device)
        with _told_where_from(no_data):
            graph = graph_of(model, args, kwargs)
        captured = time.perf_counter()
        kept_samples = take(samples, graph.batch or 8) if no_data is None else None
        notes = samples.notes
        graph = rewrite(graph)
        if no_data is not None:
            args, kwargs = samples.example(graph.batch or 2, device)
            _check_sound(_floats(graph, args, kwargs))
        if recipe.all_rewrites:
            few = MEASURED if any(one.measures_moments for one in recipe.all_rewrites) else 2
            args, kwargs = samples.example(graph.batch or few, device)
            graph, rewrite_notes = apply_rewrites(graph, recipe.all_rewrites, args, kwargs, real=no_data is None)
            notes = (*notes, *rewrite_notes)
        rewritten = time.perf_counter()
        tasks = plan_layers(graph, recipe)
        batches, count = list(samples.batches), samples.samples
        del samples  # so that the passes decide how long they stay
        if no_data is None:
            passed = run_passes(graph, batches, count, tasks, recipe, store, progress)
        else:
            passed, count = run_without_data(graph, tasks, recipe), 0
    result = passed.result
    quantized = emit(graph, result.weights, passed.quantizers)
    report = Report(
        layers=tuple(result.reports),
        kept_float=tuple(kept_float(graph, result.weights)),
        samples=count,
        output_error=result.output_error,
        float_bytes=facts.size,
        quantized_bytes=_size(quantized),
        seconds={"read": read - begin, "capture": captured - read, "rewrite": rewritten - captured, **result.seconds},
        peak_activation_bytes=store.peak,
        notes=notes,
        activations=passed.activations,
    )
    return Model(quantized, report, recipe, versions(), kept_samples)


@contextlib.contextmanager
def _told_where_from(no_data: DataFree | None) -> Iterator[None]:
    """Errors of inputs that were made up say so: whoever has no samples cannot give better ones."""
    try:
        yield
    except CalibrationError as error:
        if no_data is None:
            raise
        raise CalibrationError(
            f"{error}\nThere is no data: these samples are random numbers like the example of `DataFree`, or "
            "`--input-size`. Give the size of one sample that the model takes. For several inputs, or whole "
            "numbers such as tokens, the example is a tuple or dict of tensors, which only Python takes (or a program "
            "that was exported with them)."
        ) from error


def rewrite(graph: Graph) -> Graph:
    """Bring a captured graph into its form for inference: no dropout, one normal form, batch-norm folded.

    Outputs stay the same.
    """
    graph = normalize(drop_dropout(graph))
    for apply in ALWAYS:
        graph = apply(graph)
    return graph


def apply_rewrites(
    graph: Graph,
    rewrites: Sequence[GraphRewrite],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    real: bool = True,
) -> tuple[Graph, tuple[str, ...]]:
    """Apply rewrites one after the other, and see to it that the network computes what it did.

    One that is not exact may change outputs, but not their shapes; what comes after it is held to the new outputs.

    Args:
        graph: in normal form.
        rewrites: in order.
        args, kwargs: a few samples, as the model is called.
        real: whether they are samples, so that how far outputs move is worth telling.

    Returns:
        The new graph, and what a reader of the report must know.

    Raises:
        ModelError: outputs changed by more than rounding errors do; names the rewrite.
    """
    before, notes = _floats(graph, args, kwargs), []
    for one in rewrites:
        if one.measures_moments:
            if not real:
                raise RecipeError(f"{one!r} measures the outputs of layers on samples, and there are none.")
            graph = with_measured_moments(graph, args, kwargs)
        word, said = _word(one, REWRITES), [one.note(graph)]
        graph = one.apply(graph)
        after = _floats(graph, args, kwargs)
        changes = _changes(before, after, word)
        if one.exact:
            _check_same(before, changes, word)
        else:
            if not all(change <= _allowed(was) for was, change in zip(before, changes, strict=True)):
                said.append(
                    f"the float network's outputs moved by {max(changes):.2g} of their size; errors count from there"
                    if real
                    else "the float network's outputs moved; how far was not measured, without data"
                )
            before = after  # even if they hardly moved: that is not the next one's doing
        notes += [f"{word}: {'; '.join(filter(None, said))}"] if any(said) else []
    return graph, tuple(notes)


def _floats(graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The network's outputs, but for whole numbers: a class may change for the last digit of a logit."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(graph.module()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _check_sound(outputs: list[Tensor]) -> None:
    """Raise where the float network gives no numbers for random inputs; the −∞ of a mask is one."""
    broken = sum(int((output.isnan() | (output == math.inf)).sum()) for output in outputs)
    if broken:
        raise ModelError(
            f"the float network gives {broken} NaN or infinite outputs for random inputs. Check its weights, biases "
            "and batch-norm statistics; where float16 is too narrow, quantize the model in float32 or bfloat16."
        )


def _changes(before: list[Tensor], after: list[Tensor], word: str) -> list[float]:
    """Relative differences of the outputs; NaN where one has become infinite or NaN."""
    shapes = [[(list(t.shape), t.dtype) for t in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"the rewrite '{word}' changed what the network returns, from {shapes[0]} to {shapes[1]}.")
    changes = []
    for was, now in zip(before, after, strict=True):
        finite = was.isfinite()  # the −∞ of a mask has no error
        energy = torch.linalg.vector_norm(was[finite].double())
        error = float(torch.linalg.vector_norm(now[finite].double() - was[finite].double()) / energy.clamp(min=1e-30))
        changes.append(error if torch.equal(finite, now.isfinite()) else math.nan)
    return changes


def _check_same(before: list[Tensor], changes: list[float], word: str) -> None:
    for number, (was, error) in enumerate(zip(before, changes, strict=True)):
        allowed = _allowed(was)
        if not error <= allowed:
            raise ModelError(
                f"the rewrite '{word}' changed what the float network computes: output {number} differs by {error:.2g} "
                f"of its size, where rounding errors of {was.dtype} explain no more than {allowed:.2g}. Leave it out "
                "of the recipe's rewrites for this network; if it is one of Roundwise's own, please report it."
            )


def _allowed(output: Tensor) -> float:
    """The relative difference that rounding errors explain."""
    return math.sqrt(torch.finfo(output.dtype).eps)


def plan_layers(graph: Graph, recipe: Recipe) -> list[LayerTask]:
    """What to do with each layer that will be quantized, in order.

    Raises:
        ModelError: there is none, or its weights are not finite.
        RecipeError: an override matches no layer, or columns do not divide into the groups that are asked for.
    """
    layers = find_layers(graph)
    if not layers:
        raise ModelError(
            f"the model has no layer to quantize: among its {len(graph.operations.nodes)} operations is no linear "
            "layer and no convolution with a constant weight."
        )
    settings = recipe.resolve([layer.name for layer in layers])
    known = propagate(graph)
    tasks = [
        _task(graph, layer, weights, recipe, known) for layer in layers if (weights := settings[layer.name]) is not None
    ]
    if not tasks:
        these = "the only layer" if len(layers) == 1 else f"all {len(layers)} layers"
        raise ModelError(f"the recipe's overrides keep {these} in float: nothing is left to quantize.")
    check_groups((task.layer.name, task.layer.map.matrix_shape[2], task.granularity) for task in tasks)
    return tasks


def _task(graph: Graph, layer: Layer, weights: Weights, recipe: Recipe, known: Mapping[fx.Node, Known]) -> LayerTask:
    tensor = graph.constants[layer.weight].float()
    if not torch.isfinite(tensor).all():
        raise ModelError(
            f"layer '{layer.name}' has {int((~torch.isfinite(tensor)).sum())} weights that are NaN or infinite, of "
            f"{tensor.numel()}. Such a network computes nothing to compare with: load sound weights."
        )
    if layer.map.bias is not None and not torch.isfinite(layer.map.bias).all():
        raise ModelError(
            f"layer '{layer.name}' has {int((~torch.isfinite(layer.map.bias)).sum())} biases that are NaN or infinite, "
            f"of {layer.map.bias.numel()}. Such channels compute nothing: load sound weights."
        )
    rounding = weights.rounding or recipe.rounding
    words = (
        granularity_name(weights.granularity),
        _word(weights.ranges, RANGE_ESTIMATORS),
        _word(rounding, ROUNDING_SOLVERS),
    )
    methods = [method for method in (weights.ranges, rounding, recipe.correction) if method is not None]
    expects = any(method.needs is ExpectedMeans for method in methods)
    return LayerTask(
        layer=layer,
        codebook=weights.codebook,
        granularity=weights.granularity,
        ranges=weights.ranges,
        rounding=rounding,
        words=words,
        correction=recipe.correction,
        known={ExpectedMeans: _expected_means(layer, tensor, known)} if expects else {},
    )


def _expected_means(layer: Layer, weight: Tensor, known: Mapping[fx.Node, Known]) -> ExpectedMeans:
    try:
        inputs = expected_columns(layer.map, layer.node, known)
    except LookupError as error:
        return ExpectedMeans(layer.map, missing=str(error))
    return ExpectedMeans(layer.map, layer.map.to_matrix(weight), inputs)


def _word(method: object, table: dict[str, type]) -> str:
    return next((name for name, kind in table.items() if type(method) is kind), type(method).__name__)


def kept_float(graph: Graph, weights: list[QuantizedWeight]) -> list[KeptFloat]:
    """Every weight (a parameter that is no vector) that the quantized network reads as float, and why."""
    quantized = {weight.layer.weight: set(weight.layer.calls) for weight in weights}
    by_recipe = {layer.weight: layer.name for layer in find_layers(graph)}
    kept = []
    for node in graph.operations.nodes:
        value = graph.constant(node)
        if value is None or value.dim() < 2 or not value.is_floating_point():
            continue
        name = str(node.target)
        readers = sorted({str(user.target) for user in node.users if user not in quantized.get(name, ())})
        if name in by_recipe and name not in quantized:
            kept.append(KeptFloat(by_recipe[name], value.numel(), "the recipe keeps it in float"))
        elif readers and value.numel() > max(value.shape):  # not a number for each channel, such as a limit
            kept.append(KeptFloat(name, value.numel(), f"read by {', '.join(readers)}, which is not a layer"))
    return kept


def _check_recipe(recipe: object) -> None:
    if not isinstance(recipe, Recipe):
        raise RecipeError(
            f"the recipe is a {type(recipe).__name__}; it must be a Recipe. (A dict becomes one by Recipe.from_dict.)"
        )


def _size(graph: Graph) -> int:
    """Bytes of all constants, codes counted at the bits they take in a file."""
    bits, size = packed_bits(graph), 0
    for name, tensor in graph.constants.items():
        if isinstance(tensor, Tensor):  # and not a piece of control flow
            size += -(-tensor.numel() * bits[name] // 8) if name in bits else tensor.nbytes
    return size
