"""Prepare a run: read the samples, capture the model, and make the state that all stages of the run share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from roundwise.artifacts.model import Model
from roundwise.engine.calibration import Calibration, DataFree, copy_samples, read_calibration
from roundwise.engine.network import Network, facts_of, graph_for, made_up_inputs
from roundwise.engine.store import ActivationStore, default_budget
from roundwise.engine.torch_state import capturing_on, default_device, isolated_torch_state, notes_on_settings
from roundwise.errors import CalibrationError, RecipeError
from roundwise.events import Progress
from roundwise.graph.graph import Graph, InputSpec
from roundwise.graph.sizes import Dynamic, Range
from roundwise.recipe.compress import Compress
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.recipe import Recipe
from roundwise.targets import TARGETS, Target

Metric = Callable[[Model], float]
"""A function that says how good a network is: larger is better."""


@final
@dataclass(frozen=True, eq=False)
class ForTraining:
    """What the caller gives for stages that train.

    Attributes:
        samples: in the caller's form: training reads them anew in each epoch. None takes the calibration samples.
        journal: the folder where training keeps its state, so that it can go on after it was killed; or None.
        augmentation: changes the inputs of each training batch; or None.
    """

    samples: Any = None
    journal: Path | None = None
    augmentation: Callable[[Any], Any] | None = None


@final
@dataclass(eq=False)
class Run:
    """The state that all stages of one run share.

    Attributes:
        calibration: the samples, or random inputs if there is no data; None after the last stage has taken them.
        has_data: whether the samples are data: methods may learn from them, and errors are measured on them.
        samples: number of calibration samples; 0 without data.
        store: holds activations between layers.
        seed: seed of all random choices.
        progress: called with an event for each step of the run.
        inputs: copies of the first samples, which the finished model keeps as its example; None without data.
        notes: for the report: on the caller's settings, on values of the data that were not used, on the capture.
        seconds: what the preparation took: reading the samples, and capturing the model.
        training: what the caller gives for stages that train; its samples are set.
        metric: the caller's function that says how good a network is; or None.
        last: whether the current stage is the last one, so that the samples need not be kept after it; `run_stage`
            sets it.
    """

    calibration: Calibration | None
    has_data: bool
    samples: int
    store: ActivationStore
    seed: int
    progress: Progress
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None
    notes: tuple[str, ...]
    seconds: dict[str, float]
    training: ForTraining = ForTraining()
    metric: Metric | None = None
    last: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.store.device

    def example(self, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with the first `count` samples, on the network's device."""
        assert self.calibration is not None
        return self.calibration.example(count, self.device)

    def take_batches(self) -> list[list[Any]]:
        """All batches. The last stage gets the only references to them, so that it can free each batch after use."""
        assert self.calibration is not None
        batches = list(self.calibration.batches)
        if self.last:
            self.calibration = None
        return batches


@contextlib.contextmanager
def prepared_run(
    model: nn.Module | ExportedProgram | Network,
    data: Any,
    recipe: Recipe,
    progress: Progress | None,
    dynamic: Dynamic | None = None,
    training: ForTraining = ForTraining(),
    metric: Metric | None = None,
) -> Iterator[tuple[Run, Network]]:
    """Read the samples and capture the model; gives the state of the run, and the network for the first stage.

    Inside the context PyTorch's global settings are as a run needs them, and activations may be held. At its end the
    settings are as they were, and files with activations are deleted.

    Raises:
        CalibrationError, CaptureError, ModelError, MemoryBudgetError, RecipeError: as `quantize`.
    """
    if progress is not None and not callable(progress):
        raise RecipeError(
            f"progress={progress!r}: it must be a function that takes an event. Give print, for instance."
        )
    if metric is None:
        _check_no_metric_is_needed(recipe)
    facts = facts_of(model)
    if recipe.target is not None:
        _check_float_type(facts.dtype, TARGETS[recipe.target])
    device = facts.device
    budget = default_budget(device) if recipe.memory_budget is None else recipe.memory_budget
    start, settings, callers = time.perf_counter(), notes_on_settings(device), default_device()
    with isolated_torch_state(device), ActivationStore(budget, device) as store:
        has_data = not isinstance(data, DataFree)
        inputs = data.samples(facts.dtype, facts.signature.batch or 2) if isinstance(data, DataFree) else data
        calibration = read_calibration(inputs, facts.signature, recipe.batch_size, store)
        read = time.perf_counter()
        capturing = capturing_on(device, callers)
        with made_up_inputs(not has_data), _hinting_at_single_samples(data), capturing:
            graph, odd = graph_for(model, calibration, device, dynamic)
        if graph.batch is None:
            calibration = calibration.within(graph.limits.batches, chosen=recipe.batch_size is not None)
        captured = time.perf_counter()
        run = Run(
            calibration=calibration,
            has_data=has_data,
            samples=calibration.samples if has_data else 0,
            store=store,
            seed=recipe.seed,
            progress=progress or (lambda _: None),
            inputs=copy_samples(calibration, _example_size(graph)) if has_data else None,
            notes=(
                *_notes_on_target(recipe),
                *settings,
                *calibration.notes,
                *odd,
                *_notes_on_samples(calibration, has_data),
                *graph.notes,
                *_notes_on_sizes(graph),
            ),
            seconds={"read": read - start, "capture": captured - read},
            metric=metric,
        )
        if any(isinstance(stage, Finetune) for stage in recipe.stages):
            run.training = replace(training, samples=inputs if training.samples is None else training.samples)
        del calibration, inputs  # so that the last stage gets the only references to the samples (`take_batches`)
        yield run, Network(graph, facts, {})


def _check_float_type(dtype: torch.dtype, target: Target) -> None:
    """Raise if the target cannot compute in the network's float type."""
    if dtype not in target.float_types:
        names = [str(one).removeprefix("torch.") for one in (dtype, *target.float_types)]
        raise RecipeError(
            f"the network computes in {names[0]}, and the target '{target.name}' in {', '.join(names[1:])} only. Give "
            "`model.float()`, or choose another target."
        )


def _notes_on_target(recipe: Recipe) -> tuple[str, ...]:
    """What the report says about the target that the user has chosen."""
    if recipe.target is None:
        return ()
    target = TARGETS[recipe.target]
    signed = "" if target.activation_zero_points else "; codes are signed and all zero points are 0"
    return (f"made for the target '{target.name}' ({target.title}){signed}",)


def _check_no_metric_is_needed(recipe: Recipe) -> None:
    for stage in recipe.stages:
        if isinstance(stage, Compress) and stage.choice.evaluates:
            raise RecipeError(
                f"Compress(choice={stage.choice!r}) compares networks by a metric, and none is given. Give "
                "roundwise.compress(…, evaluate=…) a function that takes a network and returns its accuracy, or take "
                "choice=OutputError(), which needs no labels."
            )


def _example_size(graph: Graph) -> int:
    """The number of samples that the finished model keeps."""
    batches = graph.limits.batches
    return graph.batch or max(batches.low, min(8, batches.high or 8))


def _notes_on_sizes(graph: Graph) -> tuple[str, ...]:
    """Notes for the report: which inputs the network takes beside those like the samples."""
    notes, batches = [], graph.limits.batches
    if graph.batch is None and batches != Range():
        notes.append(
            f"the network takes batches of {batches} samples: for other numbers of samples the model's code does "
            "something else. A file for another runtime does not check this"
        )
    specs = [spec for spec in graph.inputs if isinstance(spec, InputSpec)]
    named = {size.name: f"{size.name} ({size.sizes})" for spec in specs for size in spec.variable if size.name}
    if named:
        inputs = ", ".join(replace(spec, variable=()).in_words() for spec in specs)
        notes.append(
            f"dynamic sizes: {', '.join(named.values())}. Errors, memory and time in this report are for the "
            f"calibration samples, {inputs}"
        )
    if graph.limits.contiguous:
        notes.append(
            "the network takes contiguous inputs only: the model reads memory in its order (`as_strided`), or its code "
            "decides by that order (`is_contiguous`, `stride`), or it writes in place to a result of `reshape` or the "
            "like, which is a view or a copy"
        )
    return tuple(notes)


@contextlib.contextmanager
def _hinting_at_single_samples(data: Any) -> Iterator[None]:
    """Where the model does not run on the samples, say that each item of a list counts as a batch."""
    try:
        yield
    except CalibrationError as error:
        alike = isinstance(data, list) and len({(type(one), getattr(one, "shape", None)) for one in data}) == 1
        if not alike or not isinstance(data[0], Tensor | np.ndarray):
            raise
        stack = "torch.stack" if isinstance(data[0], Tensor) else "numpy.stack"
        raise CalibrationError(
            f"{error} (Each of the {len(data)} items of the list counts as a batch, of {data[0].shape[0]} samples. If "
            f"an item is a single sample, give {stack}(samples).)"
        ) from error


def _notes_on_samples(calibration: Calibration, has_data: bool) -> tuple[str, ...]:
    if not has_data or not calibration.alike:
        return ()
    return (
        f"all {calibration.samples} samples are alike, so errors in this report say nothing about other inputs. Give "
        "inputs of the kind that the network will meet",
    )
