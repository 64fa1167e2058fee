"""What `quantize` and `compress` start from and end with: the network, the samples, and the accuracy on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from roundwise.cli.datafree import DataFreeOptions
from roundwise.cli.measuring import accuracy
from roundwise.cli.results import Run
from roundwise.cli.samples import SampleOptions, describe
from roundwise.cli.terminal import say
from roundwise.data.dataset import Dataset, load_data
from roundwise.engine.calibration import BATCH
from roundwise.loading.models import LoadedModel, move
from roundwise.loading.runnable import run_on
from roundwise.recipe.recipe import Recipe


@final
@dataclass(frozen=True)
class Prepared:
    """A network and its samples.

    Attributes:
        model: what the user called the model.
        network: on the device.
        device: where everything runs.
        recipe: of the run, with what the data says in it.
        inputs: what the run reads: batches, or a description of one input.
        dataset: the samples; None where there are none.
        batch_size: samples at a time.
        facts: for the page.
        started: when the command began, by `time.perf_counter`.
    """

    model: str
    network: Any
    device: torch.device
    recipe: Recipe
    inputs: Any
    dataset: Dataset | None
    batch_size: int
    facts: dict[str, str]
    started: float

    def accuracy(self, network: Any, name: str) -> dict[str, float]:
        """The accuracy of a network on the samples, by the name of the measure; empty where there are no labels.

        Raises:
            RoundwiseError: the labels do not fit the network, or its outputs are not scores of classes.
        """
        if self.dataset is None:
            return {}
        return accuracy(run_on(self.device, name, network), self.dataset, self.batch_size)

    def run(self, before: dict[str, float], after: dict[str, float]) -> Run:
        """What is told beside the result: where from, and the accuracy before and after."""
        preprocessing = None if self.dataset is None else self.dataset.preprocessing
        both = {name: (before[name], after[name]) for name in before}
        return Run(self.model, self.facts, preprocessing, both, self.started)


def prepare(
    loaded: LoadedModel,
    samples: SampleOptions,
    data_free: DataFreeOptions,
    recipe: Recipe,
    device: torch.device,
    *,
    want_labels: bool,
    labels: Path | None,
    started: float,
) -> Prepared:
    """Read the samples, tell the user what was read, and bring the network to its device.

    Args:
        loaded: the network.
        samples, data_free: what the user said about the data.
        recipe: of the run.
        device: where everything runs.
        want_labels: whether accuracy is measured.
        labels: a file of labels, or None.
        started: when the command began, by `time.perf_counter`.

    Raises:
        RoundwiseError: the samples cannot be read; or there are none, and nothing says what an input looks like.
    """
    network, batch_size = move(loaded.network, device), recipe.batch_size or BATCH
    facts = {"model": loaded.name}
    if data_free.data_free:
        inputs, recipe, facts["samples"] = data_free.inputs(loaded, samples, recipe)
        say(f"data: {facts['samples']}")
        return Prepared(loaded.name, network, device, recipe, inputs, None, batch_size, facts, started)
    reading, source = samples.reading(loaded.preprocessing, recipe.seed)
    dataset = load_data(samples.require(), replace(reading, want_labels=want_labels, labels=labels))
    facts["samples"] = dataset.description
    describe("data", dataset, source)
    if dataset.preprocessing is not None:
        facts["images"] = f"{dataset.preprocessing} ({source})"
    batches = dataset.batches(batch_size)
    return Prepared(loaded.name, network, device, recipe, batches, dataset, batch_size, facts, started)
