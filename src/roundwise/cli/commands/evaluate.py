"""`roundwise evaluate`: how good a network is, and how close to another."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from roundwise.cli.options import DataRequest, data_options, weight_options, weight_source
from roundwise.cli.parameters import EXISTING_FILE, Device
from roundwise.cli.runnable import Runnable, open_runnable, takes_weights
from roundwise.cli.terminal import exits, sample_progress, say, show_json
from roundwise.cli.weights import FromFile, WeightSource
from roundwise.errors import CalibrationError
from roundwise.evaluation.data import Dataset, load_data
from roundwise.evaluation.metrics import evaluate

HELP = """
Measure a network on labelled samples, or compare it with another on any samples: accuracy where a sample has a label,
mean IoU where it has a mask.

\b
MODEL_OR_FILE is a .rw file, an .onnx file (runs in ONNX Runtime), a .pt2 program, or as for `quantize`:
torchvision:NAME, timm:NAME, file.py:function. Weights options apply to whichever network takes weights.

\b
Examples:
  roundwise evaluate resnet18.rw --data validation/ --classes classes.txt --preprocess-as torchvision:resnet18
  roundwise evaluate resnet18.rw --against torchvision:resnet18 --pretrained --data photos/
  roundwise evaluate net.onnx --against net.rw --data inputs.npz --json
  roundwise evaluate deeplab.rw --against torchvision:deeplabv3_resnet50 --pretrained --data VOC2012/ --size 513
"""


@click.command(
    "evaluate",
    help=HELP,
    epilog="Exit codes: 0 done; 1 it cannot be done, and the message on stderr says why; 2 wrong usage; 130 Ctrl-C.",
)
@click.argument("model", metavar="MODEL_OR_FILE")
@click.option(
    "--against",
    metavar="MODEL_OR_FILE",
    help="Another network, taken as the truth: how often do both predict the same, how far are the outputs apart?",
)
@weight_options
@click.option(
    "--against-weights", type=EXISTING_FILE, help="Weights of the network after --against.  [default: those of MODEL]"
)
@data_options
@click.option(
    "--labels",
    type=EXISTING_FILE,
    help="Labels in a file of their own, in the order of the samples: one number a line (.txt), or an array file.",
)
@click.option(
    "--classes",
    "class_list",
    type=EXISTING_FILE,
    help="For one folder per class: a text file with one "
    "folder's name a line, in the network's order of classes.  [default: sorted by name]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice that --limit makes.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Samples at a time.")
@click.option(
    "--device",
    type=Device(),
    default="cpu",
    show_default=True,
    help="Where networks run: cpu, cuda; .onnx files run on the CPU.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@exits
def command(
    model: str,
    against: str | None,
    against_weights: Path | None,
    num_classes: int | None,
    labels: Path | None,
    class_list: Path | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    as_json: bool,
    **options: Any,
) -> None:
    """Run `roundwise evaluate`."""
    started = time.perf_counter()
    request = DataRequest.take(options)
    source = weight_source(options, seed)
    _check_weights(model, against, source, against_weights)
    network = open_runnable(model, source, device, num_classes)
    reference = None
    if against is not None:
        other = source if against_weights is None else FromFile(against_weights)
        reference = open_runnable(against, other, device, num_classes)
    for runnable in [network] if reference is None else [network, reference]:
        for note in runnable.notes:
            say(f"{runnable.name}: {note}")

    own = network.preprocessing or (reference.preprocessing if reference is not None else None)
    data, preprocessing_source = request.options(own, seed)
    dataset = load_data(request.data, replace(data, want_labels=True, class_list=class_list, labels=labels))
    say(f"data: {dataset.description}")
    if dataset.preprocessing is not None:
        say(f"images: {dataset.preprocessing} ({preprocessing_source})")
    if dataset.labels is None and dataset.masks is None and reference is None:
        raise click.UsageError(
            f"there is nothing to measure: {request.data} has no labels. Give --labels FILE, a folder with one folder "
            "per class or with masks in Pascal VOC layout, or --against MODEL to compare two networks."
        )
    if dataset.classes:
        _check_classes(network, dataset)
    with sample_progress(len(dataset)) as progress:
        evaluation = evaluate(
            network,
            dataset.batches(batch_size),
            labels=dataset.labels,
            masks=dataset.mask_batches(batch_size),
            against=reference,
            progress=progress,
        )
    if as_json:
        show_json(
            {
                "model": model,
                "against": against,
                "data": dataset.description,
                "preprocessing": None if dataset.preprocessing is None else str(dataset.preprocessing),
                **evaluation.as_dict(),
                "seconds": time.perf_counter() - started,
            }
        )
        return
    click.echo(model if against is None else f"{model}, compared with {against}")
    click.echo(str(evaluation))


def _check_weights(model: str, against: str | None, source: WeightSource | None, against_weights: Path | None) -> None:
    specs = [model] if against is None else [model, against]
    if source is not None and not any(map(takes_weights, specs)):
        raise click.UsageError(
            f"{' and '.join(specs)}: the weights are in the file; leave out the options for weights."
        )
    if against_weights is not None and (against is None or not takes_weights(against)):
        raise click.UsageError("--against-weights needs --against with a network that takes weights.")


def _check_classes(network: Runnable, dataset: Dataset) -> None:
    """Labels counted from sorted folders are right only where every class of the network has a folder.

    Raises:
        CalibrationError: the network has another number of classes than there are folders.
    """
    with torch.no_grad():
        outputs = network(next(iter(dataset.batches(1))))
    if isinstance(outputs, torch.Tensor) and outputs.ndim == 2 and outputs.shape[1] != len(dataset.classes):
        raise CalibrationError(
            f"there are {len(dataset.classes)} folders, one per class, but the network has {outputs.shape[1]} classes: "
            "counting the folders would give wrong labels. Give --classes FILE with the folder names in the network's "
            "order of classes, one a line."
        )
