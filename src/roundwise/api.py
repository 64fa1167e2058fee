"""The public calls: from a model, samples and a recipe to a small model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from roundwise.artifacts.emit import emit
from roundwise.artifacts.model import Model, versions
from roundwise.engine.calibration import DataFree
from roundwise.engine.network import Network
from roundwise.engine.run import Run, prepared_run
from roundwise.engine.stages import run_stage
from roundwise.engine.tasks import stored_bytes
from roundwise.events import Progress
from roundwise.graph.sizes import Dynamic
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Stage
from roundwise.report import Report


def quantize(
    model: nn.Module | ExportedProgram | Network,
    data: Any,
    recipe: Recipe | Stage | Sequence[Stage] | None = None,
    *,
    dynamic: Dynamic | None = None,
    progress: Progress | None = None,
) -> Model:
    """Quantize a trained network's weights, choosing codes that keep each layer's outputs as they were.

    Args:
        model: any module that `torch.export` can capture, of any floating-point dtype; it is left as it is, and the
            result shares no memory with it. Or a program that was exported already; or, for several recipes in turn,
            what `capture` makes of either.
        data: a few hundred unlabelled inputs: a tensor or array `[samples, …]`; a tuple (positional inputs) or dict
            (named inputs) of them; or an iterable of batches of these, such as a `DataLoader`. Labels are dropped (see
            `engine/calibration.py` for the rule). Or `DataFree(…)` where there is none; no error is then measured.
        recipe: what to do, or a stage or sequence of stages of one; by default 4-bit weights per channel and
            `GramAdaRound` for every layer, and without data `Recipe.data_free()`.
        dynamic: names for the sizes that may differ between calls, by input and dimension: `{"x": {2: "height"}}`. The
            number of samples always may. All other sizes are those of the samples: a call with another size is refused,
            unless nothing in the network depends on it.
        progress: called with an `Event` as the run goes; `print` will do.

    Returns:
        The quantized network, with its report.

    Raises:
        CalibrationError: no samples, or samples that are not finite, not alike, or not the model's inputs.
        CaptureError: the model cannot be captured as a graph; the message says where and what to do.
        ModelError: no layer to quantize, weights that are not finite, or parameters on several devices.
        RecipeError: the recipe does not fit the model, or needs data where there are none; or the inputs have no such
            dimensions as `dynamic` names.
        MemoryBudgetError: activations would fit neither in memory nor on disk.

    Example:
        >>> import roundwise as rw
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
        >>> stage = rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest())
        >>> quantized = rw.quantize(model, torch.randn(16, 3, 8, 8), stage)
        >>> quantized(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 8, 6, 6])
    """
    if recipe is None:
        recipe = Recipe.data_free() if isinstance(data, DataFree) else Recipe()
    recipe = Recipe.of(recipe)
    with prepared_run(model, data, recipe, progress, dynamic) as (run, network):
        for index, stage in enumerate(recipe.stages, 1):
            network = run_stage(stage, network, run, following=recipe.stages[index:])
    return _model_of(network, run, recipe)


def _model_of(network: Network, run: Run, recipe: Recipe) -> Model:
    """The result: the network with integer codes and quantizers in its graph, and the report on all stages."""
    graph = emit(network.graph, list(network.weights), network.quantizers)
    report = Report(
        stages=network.reports,
        samples=run.samples,
        float_bytes=network.facts.size,
        quantized_bytes=stored_bytes(graph),
        setup_seconds=run.seconds,
        peak_activation_bytes=run.store.peak,
        setup_notes=run.notes,
    )
    return Model(graph, report, recipe, versions(), run.inputs)
