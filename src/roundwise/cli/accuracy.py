"""What `roundwise quantize --report` measures where labels are given: accuracy before and after.

The network is measured before it is quantized, so that labels that do not fit it end the command before the long run.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from roundwise.cli.options import DataRequest
from roundwise.cli.runnable import Runnable
from roundwise.cli.terminal import sample_progress
from roundwise.evaluation.data import Dataset
from roundwise.evaluation.metrics import Accuracy, evaluate


def check_labels(labels: Path | None, request: DataRequest, report: Path | None) -> bool:
    """Whether labels are asked for. Those that merely stand in the data are left alone: nobody said what they are.

    Raises:
        click.UsageError: labels, and no report to tell what comes of them.
    """
    if labels is not None and report is None:
        raise click.UsageError("--labels goes with --report: quantization needs none, only the report's accuracy does.")
    return report is not None and (labels is not None or request.keys.labels is not None)


def measure(
    name: str, network: nn.Module | ExportedProgram, dataset: Dataset, batch_size: int, device: torch.device
) -> Accuracy | None:
    """A network's accuracy on the samples of a data set; None where it has no labels.

    Folders that were numbered in the order of their names are no labels: their order need not be the network's.

    Raises:
        RoundwiseError: the labels are not this network's, or its outputs are not scores of classes.
    """
    if dataset.labels is None or dataset.classes:
        return None
    module = network if isinstance(network, nn.Module) else network.module()

    def run(inputs: Tensor) -> object:
        return module(inputs.to(device))

    with sample_progress(len(dataset)) as progress:
        batches = dataset.batches(batch_size)
        return evaluate(Runnable(name, run), batches, labels=dataset.labels, progress=progress).accuracy


def before_and_after(before: Accuracy, after: Accuracy | None) -> dict[str, tuple[float, float]]:
    """Both, by the measure's name."""
    if after is None:
        return {}
    pairs = {"top-1": (before.top1, after.top1)}
    if before.top5 is not None and after.top5 is not None:
        pairs["top-5"] = (before.top5, after.top5)
    return pairs
