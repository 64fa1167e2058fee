"""The public calls: from a model, samples and a recipe to a small model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from roundwise.artifacts.model import Model
from roundwise.engine.calibration import DataFree
from roundwise.engine.network import Network
from roundwise.engine.result import model_of
from roundwise.engine.run import ForTraining, Metric, prepared_run
from roundwise.engine.stages import run_stages
from roundwise.engine.trainable import Trainable
from roundwise.engine.training_data import some_samples
from roundwise.errors import RecipeError
from roundwise.events import Progress
from roundwise.graph.sizes import Dynamic
from roundwise.methods.training import LSQPlus
from roundwise.recipe.compress import DEFAULT_METHODS, FACTORIZATIONS, Compress
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Quantize, Rewrite, Stage

CALIBRATION = 1024
"""`finetune` calibrates on 1,024 of the samples, as the AdaRound paper does. More take longer and gain little."""


def quantize(
    model: nn.Module | ExportedProgram | Network,
    data: Any,
    recipe: Recipe | Stage | Sequence[Stage] | None = None,
    *,
    target: str | None = None,
    dynamic: Dynamic | None = None,
    progress: Progress | None = None,
) -> Model:
    """Quantize a trained network's weights, choosing codes that keep each layer's outputs as they were.

    Args:
        model: any module that `torch.export` can capture, of any floating-point dtype; it is left as it is, and the
            result shares no memory with it. Or a program that was exported already; or, for several recipes in turn,
            what `capture` makes of either.
        data: a few hundred unlabelled inputs: a tensor or array `[samples, …]`; a tuple (positional inputs) or dict
            (named inputs) of them; or an iterable of batches of these, such as a `DataLoader`. What `forward` has no
            parameter for is dropped: these are labels (the rule stands in `engine/inputs.py`). Or `DataFree(…)` where
            there is none; no error is then measured.
        recipe: what to do, or a stage or sequence of stages of one; by default 4-bit weights per channel and
            `GramAdaRound` for every layer, and without data `Recipe.data_free()`.
        target: the name of what the network is to run on, such as "tensorrt"; the page "Targets" lists them. It shapes
            what the recipe leaves open, and what it cannot hold is refused before the run. None takes the target of
            the recipe, if it has one.
        dynamic: names for the sizes that may differ between calls, by input and dimension: `{"x": {2: "height"}}`. The
            number of samples always may. All other sizes are those of the samples: a call with another size is refused,
            unless nothing in the network depends on it.
        progress: called with an `Event` as the run goes, such as `print`.

    Returns:
        The quantized network, with its report.

    Raises:
        CalibrationError: no samples, or samples that are not finite, not alike, or not the model's inputs.
        CaptureError: the model cannot be captured as a graph; the message says where and what to do.
        ModelError: no layer to quantize, weights that are not finite, or parameters on several devices.
        RecipeError: the recipe does not fit the model or the target, or needs data where there are none; or the inputs
            have no such dimensions as `dynamic` names.
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
    recipe = Recipe.of(recipe).for_target(target)
    with prepared_run(model, data, recipe, progress, dynamic) as (run, network):
        network = run_stages(recipe.stages, network, run)
    return model_of(network, run, recipe)


def compress(
    model: nn.Module | ExportedProgram | Network,
    data: Any,
    recipe: Recipe | Stage | Sequence[Stage] | None = None,
    *,
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    evaluate: Metric | None = None,
    dynamic: Dynamic | None = None,
    progress: Progress | None = None,
) -> Model:
    """Make a trained network smaller and faster, without training: layers become chains, or have fewer channels.

    Args:
        model: as for `quantize`.
        data: a few hundred unlabelled inputs, as for `quantize`. With `DataFree(…)` the new layers approximate the old
            weights, which costs far more accuracy; no channels are then removed by default.
        recipe: a stage `Compress`, or a recipe with one, instead of `macs`, `parameters` or `latency`. Before a single
            stage, batch-norms are folded.
        macs: the share of the network's multiplications that is left, above 0 and below 1.
        parameters: the share of the numbers in weights and biases that is left, likewise.
        latency: the share of the time that is left, likewise: of all layers, each timed alone in ONNX Runtime on this
            machine, for one sample.
        evaluate: a function that takes a network, which is called as the model is, and returns a number, larger for
            better networks, such as its accuracy. The report says what it is before and after. The choice
            `EqualAccuracyLoss` needs it, and calls it 9 times per layer.
        dynamic: as for `quantize`. Multiplications are counted for the sizes of the samples.
        progress: called with an `Event` as the run goes, such as `print`.

    Returns:
        The compressed network, with its report.

    Raises:
        CalibrationError, CaptureError, MemoryBudgetError: as `quantize`.
        InferenceError: `latency` is given, and ONNX Runtime is not installed or cannot run a layer.
        ModelError: no layer to compress, weights that are not finite, or parameters on several devices.
        RecipeError: the budget cannot be met, the recipe does not fit the model, both a recipe and a budget are given,
            or neither; or `evaluate` is missing, raises an exception, or returns something else than a finite number.

    Example:
        >>> import roundwise as rw
        >>> import torch
        >>> layers = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        >>> small = rw.compress(nn.Sequential(*layers).eval(), torch.randn(64, 3, 16, 16), macs=0.5)
        >>> before, after = small.report.stages[-1].macs
        >>> after <= before / 2
        True
    """
    budgets = {"macs": macs, "parameters": parameters, "latency": latency}
    if recipe is None:
        recipe = Compress(
            macs, parameters, latency, methods=FACTORIZATIONS if isinstance(data, DataFree) else DEFAULT_METHODS
        )
    elif given := next((name for name, share in budgets.items() if share is not None), None):
        raise RecipeError(
            f"compress has a recipe and {given} too, and the recipe has a budget already. Leave out {given}, or give "
            f"Compress({given}=…) in the recipe."
        )
    recipe = Recipe.of((Rewrite(), recipe) if isinstance(recipe, Compress) else recipe).for_target()
    recipe.stage(Compress)  # raises
    if evaluate is not None and not callable(evaluate):
        raise RecipeError(
            f"evaluate={evaluate!r}: it must be a function that takes a network and returns a number, larger for "
            "better networks, such as its accuracy."
        )
    with prepared_run(model, data, recipe, progress, dynamic, metric=evaluate) as (run, network):
        network = run_stages(recipe.stages, network, run)
    return model_of(network, run, recipe)


def finetune(
    model: nn.Module | ExportedProgram | Network,
    data: Any,
    recipe: Recipe | Stage | Sequence[Stage] | None = None,
    *,
    calibration: Any = None,
    journal: str | Path | None = None,
    augmentation: Callable[[Any], Any] | None = None,
    progress: Progress | None = None,
) -> Model:
    """Quantize a network and train it on, with scales and offsets that are learned too (LSQ+).

    The stages before `Finetune` see a part of the samples only, as `quantize` would; training sees all of them, in each
    epoch anew. It learns from the float network's outputs, and from labels where `Finetune(labels=…)` says so.

    Args:
        model: as for `quantize`.
        data: what to train on, with labels or without: tensors as for `quantize`, a `DataLoader`, a data set, or an
            iterable of batches that can be read again and again. What is beyond the model's inputs are labels.
        recipe: with a stage `Finetune`; by default 4-bit weights, then `Finetune()`. A network is trained in float
            where no `Quantize` comes before.
        calibration: samples for the stages before training; None takes 1,024 of `data`.
        journal: a folder for the state of training, saved twice a minute. A run that was killed goes on from it: call
            the function again with the same arguments.
        augmentation: a function that is given the inputs of each training batch, as the model takes them (a tensor, or
            a tuple or dict of them), and returns changed ones, such as images that are flipped at random. It draws its
            random numbers from PyTorch's generator, so that runs repeat.
        progress: called with an `Event` as the run goes, such as `print`.

    Under torchrun, after `torch.distributed.init_process_group()`, all processes train one network together. Each calls
    this function with the same arguments, works on its part of each batch, and returns the same network.

    Returns:
        The trained network. Its report has the losses of each epoch.

    Raises:
        CalibrationError: as `quantize`; or the data can be read only once, or its labels do not fit the outputs.
        ModelError: as `quantize`; or the loss is not finite, or nothing can be trained.
        RecipeError: as `quantize`; or the recipe has no stage `Finetune`.

    Example:
        >>> import roundwise as rw
        >>> import torch
        >>> model, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(64, 3, 8, 8)
        >>> stages = rw.Quantize(rw.Weights(bits=2)), rw.Finetune(epochs=2)
        >>> trained = rw.finetune(model, images, stages)
        >>> [epoch.epoch for epoch in trained.report.stages[-1].epochs]
        [0, 1, 2]
    """
    recipe = Recipe.of((Quantize(), Finetune()) if recipe is None else recipe).for_target()
    recipe.stage(Finetune)  # raises
    training = ForTraining(data, None if journal is None else Path(journal), augmentation)
    few = some_samples(data, CALIBRATION, recipe.seed) if calibration is None else calibration
    with prepared_run(model, few, recipe, progress, training=training) as (run, network):
        network = run_stages(recipe.stages, network, run)
    return model_of(network, run, recipe)


def trainable(
    model: nn.Module | ExportedProgram | Network,
    data: Any,
    recipe: Recipe | Stage | Sequence[Stage] | None = None,
    *,
    progress: Progress | None = None,
) -> Trainable:
    """Quantize a network, and return it as a module that any training loop can train.

    Args:
        model: as for `quantize`.
        data: calibration samples, as for `quantize`.
        recipe: stages to run before training; of a stage `Finetune` the quantization is taken, and training is left to
            you. By default 4-bit weights.
        progress: called with an `Event` as the run goes, such as `print`.

    Returns:
        The module. Train it, then call its method `finish`.

    Raises:
        CalibrationError, CaptureError, ModelError, RecipeError, MemoryBudgetError: as `quantize`.

    Example:
        >>> import roundwise as rw
        >>> import torch
        >>> model, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(64, 3, 8, 8)
        >>> module = rw.trainable(model, images, rw.Quantize(rw.Weights(bits=2)))
        >>> optimizer = torch.optim.Adam(module.parameter_groups(lr=1e-3))
        >>> (module(images) - model(images)).square().mean().backward()
        >>> optimizer.step()
        >>> type(module.finish(images)).__name__
        'Model'
    """
    recipe = Recipe.of(Quantize() if recipe is None else recipe).for_target()
    before = [stage for stage in recipe.stages if not isinstance(stage, Finetune)]
    quantization = next((s.quantization for s in recipe.stages if isinstance(s, Finetune)), LSQPlus())
    with prepared_run(model, data, recipe, progress) as (run, network):
        network = run_stages(before, network, run)
        return Trainable(network, quantization, finish=lambda trained: model_of(trained, run, recipe))
