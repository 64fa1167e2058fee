"""The public calls: from a model, samples and a recipe to a small model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from roundwise.artifacts.emit import emit
from roundwise.artifacts.model import Model, versions
from roundwise.engine.calibration import DataFree, copy_samples, read_calibration
from roundwise.engine.network import Network, facts_of, graph_of, made_up_inputs
from roundwise.engine.run import Run
from roundwise.engine.stages import run_stage
from roundwise.engine.store import ActivationStore, default_budget
from roundwise.engine.tasks import stored_bytes
from roundwise.engine.torch_state import isolated_torch_state
from roundwise.events import Progress
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Stage
from roundwise.report import Report


def quantize(
    model: nn.Module | ExportedProgram | Network,
    data: Any,
    recipe: Recipe | Stage | Sequence[Stage] | None = None,
    *,
    progress: Progress | None = None,
) -> Model:
    """Quantize a trained network's weights, choosing for each whether to round up or down.

    Args:
        model: any module that `torch.export` can capture, of any floating-point dtype; it is left as it is, and the
            result shares no memory with it. Or a program that was exported already; or, for several recipes in turn,
            what `capture` makes of either.
        data: a few hundred unlabelled inputs: a tensor or array `[samples, …]`; a tuple (positional inputs) or dict
            (named inputs) of them; or an iterable of batches of these, such as a `DataLoader`. Labels are dropped (see
            `engine/calibration.py` for the rule). Or `DataFree(…)` where there is none; no error is then measured.
        recipe: what to do, or a stage or sequence of stages of one; by default 4-bit weights per channel and
            `GramAdaRound` for every layer, and without data `Recipe.data_free()`.
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
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
        >>> stage = rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest())
        >>> quantized = rw.quantize(model, torch.randn(16, 3, 8, 8), stage)
        >>> quantized(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 8, 6, 6])
    """
    data_free = isinstance(data, DataFree)
    if recipe is None:
        recipe = Recipe.data_free() if data_free else Recipe()
    recipe = Recipe.of(recipe)
    facts = facts_of(model)
    device = facts.device
    budget = default_budget(device) if recipe.memory_budget is None else recipe.memory_budget
    start = time.perf_counter()
    with isolated_torch_state(device), ActivationStore(budget, device) as store:
        inputs = data.samples(facts.dtype, facts.signature.batch or 2) if isinstance(data, DataFree) else data
        calibration = read_calibration(inputs, facts.signature, recipe.batch_size, store)
        read = time.perf_counter()
        with made_up_inputs(data_free):
            graph = graph_of(model, *calibration.example(2, device))
        captured = time.perf_counter()
        kept, notes = None if data_free else copy_samples(calibration, graph.batch or 8), calibration.notes
        count = 0 if data_free else calibration.samples
        run = Run(calibration, not data_free, count, store, recipe.seed, progress or (lambda _: None))
        del calibration, inputs  # so that the last stage alone decides how long samples stay
        network = Network(graph, facts, {})
        for index, stage in enumerate(recipe.stages):
            run.last = index == len(recipe.stages) - 1
            network = run_stage(stage, network, run, recipe.stages[index + 1 :])
    small = emit(network.graph, list(network.weights), network.quantizers)
    report = Report(
        stages=network.reports,
        samples=count,
        float_bytes=facts.size,
        quantized_bytes=stored_bytes(small),
        setup_seconds={"read": read - start, "capture": captured - read},
        peak_activation_bytes=store.peak,
        setup_notes=notes,
    )
    return Model(small, report, recipe, versions(), kept)
