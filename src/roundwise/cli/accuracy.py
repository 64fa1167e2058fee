"""The accuracy that `roundwise quantize --report` shows, before and after."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from roundwise.cli.runnable import Runnable
from roundwise.cli.terminal import sample_progress
from roundwise.evaluation.data import Dataset
from roundwise.evaluation.metrics import evaluate


def measure(
    name: str, network: nn.Module | ExportedProgram, dataset: Dataset, batch_size: int, device: torch.device
) -> dict[str, float]:
    """A network's accuracy on the samples of a data set, by the name of the measure; empty if there are no labels.

    The numbers of class folders in the order of their names are not labels: the network's order may be another.

    Raises:
        RoundwiseError: the labels do not fit the network, or its outputs are not scores of classes.
    """
    if dataset.labels is None or dataset.classes:
        return {}
    module = network if isinstance(network, nn.Module) else network.module()

    def run(inputs: Tensor) -> object:
        return module(inputs.to(device))

    with sample_progress(len(dataset)) as progress:
        batches = dataset.batches(batch_size)
        accuracy = evaluate(Runnable(name, run), batches, labels=dataset.labels, progress=progress).accuracy
    if accuracy is None:
        return {}
    return {"top-1": accuracy.top1} | ({} if accuracy.top5 is None else {"top-5": accuracy.top5})
