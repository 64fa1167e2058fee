"""`roundwise evaluate`: how good a network is, and how close to another."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from roundwise.cli.options import DataRequest, check_one_source, data_options, weight_options, weight_source
from roundwise.cli.parameters import EXISTING_FILE, Device, Seed
from roundwise.cli.runnable import Runnable, open_runnable, takes_weights
from roundwise.cli.terminal import exits, sample_progress, say, show_json
from roundwise.cli.weights import FromFile, WeightSource
from roundwise.evaluation.data import Dataset, load_data
from roundwise.evaluation.metrics import evaluate
from roundwise.evaluation.outputs import check_classes
from roundwise.evaluation.voc import is_voc

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
    help="Labels in a file of their own, in the order of the samples: one whole number a line (.txt), or an array "
    "file. Images of a folder are in order of name, as text: 0, 1, 10, 2.",
)
@click.option(
    "--no-labels", is_flag=True, help="Pass over labels and masks in the data, to compare with --against only."
)
@click.option(
    "--classes",
    "class_list",
    type=EXISTING_FILE,
    help="For one folder per class: a text file with one "
    "folder's name a line for each of the network's classes, in its order.  [default: sorted by name]",
)
@click.option("--seed", type=Seed(), default=0, show_default=True, help="Of the choice that --limit makes.")
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
    no_labels: bool,
    class_list: Path | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    as_json: bool,
    **options: Any,
) -> None:
    """Run `roundwise evaluate`."""
    started = time.perf_counter()
    check_one_source(class_list, labels)
    request = DataRequest.take(options)
    if no_labels and against is None:
        raise click.UsageError("--no-labels goes with --against: without labels, a network can only be compared.")
    if no_labels and (labels is not None or class_list is not None or request.keys.labels is not None):
        raise click.UsageError("--no-labels contradicts --labels, --label-key and --classes.")
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
    # The same images with and without their masks.
    split = data.split or ("val" if is_voc(request.data) else None)
    data = replace(data, want_labels=not no_labels, class_list=class_list, labels=labels, split=split)
    dataset = load_data(request.data, data)
    say(f"data: {dataset.description}")
    if dataset.preprocessing is not None:
        say(f"images: {dataset.preprocessing} ({preprocessing_source})")
    if dataset.labels is None and dataset.masks is None and reference is None:
        raise click.UsageError(
            f"there is nothing to measure: {request.data} has no labels. Give --labels FILE, a folder with one folder "
            "per class or with masks in Pascal VOC layout, or --against MODEL to compare two networks."
        )
    if dataset.counted is not None:
        _check_classes(network, dataset, batch_size)
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


def _check_classes(network: Runnable, dataset: Dataset, batch_size: int) -> None:
    """Before the long run, on its first batch (of its size, since a program may take no other)."""
    with torch.no_grad():
        check_classes(network(next(iter(dataset.batches(batch_size)))), dataset)
