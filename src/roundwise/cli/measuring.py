"""Measure networks on a data set, and show how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import click
import torch
from torch import Tensor

from roundwise.artifacts.model import Model
from roundwise.cli.options import OUTPUT, file
from roundwise.cli.samples import SampleOptions
from roundwise.cli.terminal import sample_progress
from roundwise.data.dataset import Dataset
from roundwise.evaluation.metrics import Evaluation, evaluate
from roundwise.evaluation.outputs import check_classes
from roundwise.loading.runnable import Runnable, run_on


@final
@dataclass(frozen=True)
class CheckOptions:
    """Labels on which the accuracy is measured."""

    labels: Path | None = file(
        OUTPUT,
        "Labels: with --report, to tell the accuracy before and after; for `compress --choice equal-accuracy-loss`, to "
        "compare networks by.",
    )

    def wants_accuracy(self, samples: SampleOptions, report: Path | None, *, needed: bool = False) -> bool:
        """Whether the user gave labels, or said which labels in the data are meant.

        Args:
            samples, report: what the user gave.
            needed: whether the run itself needs labels, with or without a report.

        Raises:
            click.UsageError: there are labels, but no report to show the accuracy.
        """
        if needed:
            return True
        if self.labels is not None and report is None:
            raise click.UsageError("--labels goes with --report, which shows the accuracy. Give both, or neither.")
        return report is not None and (self.labels is not None or samples.label_key is not None)


def measure(
    network: Runnable,
    dataset: Dataset,
    batch_size: int,
    *,
    against: Runnable | None = None,
    inputs: Iterable[Tensor] | None = None,
    masks: Iterable[Tensor] | None = None,
) -> Evaluation:
    """Measure a network on a data set, as `evaluate` does.

    Args:
        network, dataset, against: what is measured, on what, and what it is compared with.
        batch_size: samples at a time.
        inputs, masks: to be read in place of the batches of the data set.
    """
    with sample_progress(len(dataset)) as progress:
        return evaluate(
            network,
            inputs or dataset.batches(batch_size),
            labels=dataset.labels,
            masks=masks or dataset.mask_batches(batch_size),
            against=against,
            progress=progress,
        )


def check_first_batch(network: Runnable, dataset: Dataset, batch_size: int) -> None:
    """Check the number of classes before a long run, on a batch of the same size, since a program may take no other.

    Raises:
        CalibrationError: the network has more or fewer classes than the data set.
    """
    with torch.no_grad():
        check_classes(network(next(iter(dataset.batches(batch_size)))), dataset)


def accuracy(network: Runnable, dataset: Dataset, batch_size: int) -> dict[str, float]:
    """A network's accuracy on the samples of a data set, by the name of the measure; empty if there are no labels.

    The numbers of class folders in the order of their names are not labels: the network's order may be another.

    Raises:
        RoundwiseError: the labels do not fit the network, or its outputs are not scores of classes.
    """
    if dataset.labels is None or dataset.classes:
        return {}
    found = measure(network, dataset, batch_size).accuracy
    shares = {} if found is None else {"top-1": found.top1, "top-5": found.top5}
    return {name: share for name, share in shares.items() if share is not None}


def metric_of(dataset: Dataset, batch_size: int, device: torch.device) -> Callable[[Model], float]:
    """A function that gives a network's top-1 accuracy on the samples of a data set, as `roundwise evaluate` does.

    Raises:
        click.UsageError: the data set has no labels.
    """
    if dataset.labels is None:
        raise click.UsageError(
            f"--choice equal-accuracy-loss compares networks by their accuracy, and {dataset.description} has no "
            "labels. Give --labels FILE, --label-key NAME, or a folder with one folder per class, or another choice."
        )

    def top1(network: Model) -> float:
        batches, labels = dataset.batches(batch_size), dataset.labels
        found = evaluate(run_on(device, "the compressed network", network), batches, labels=labels).accuracy
        assert found is not None
        return found.top1

    return top1
