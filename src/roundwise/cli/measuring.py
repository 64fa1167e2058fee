"""Measure networks on a data set, and show how far it is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from roundwise.cli.terminal import sample_progress
from roundwise.data.dataset import Dataset
from roundwise.evaluation.metrics import Evaluation, evaluate
from roundwise.evaluation.outputs import check_classes
from roundwise.loading.runnable import Runnable


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
