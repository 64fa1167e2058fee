"""`roundwise evaluate`: how good a network is, and how close to another."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import click

from roundwise.cli.measuring import check_first_batch, measure
from roundwise.cli.options import ADVANCED, DATA, MODEL, RunOptions, as_command, file, flag, option
from roundwise.cli.parameters import seed
from roundwise.cli.samples import BatchOptions, LabelOptions, SampleOptions, describe
from roundwise.cli.terminal import show_json
from roundwise.cli.weights import WeightOptions
from roundwise.data.dataset import load_data
from roundwise.data.voc import is_voc
from roundwise.loading.runnable import takes_weights
from roundwise.loading.weights import FromFile, WeightSource

HELP = """
Measure a network on labelled samples, or compare it with another on any samples: accuracy if samples have labels, mean
IoU if they have masks.

\b
  roundwise evaluate net.rw --data validation/ --classes classes.txt --preprocess-as timm:resnet18
  roundwise evaluate resnet18.rw --against torchvision:resnet18 --pretrained --data photos/
  roundwise evaluate net.onnx --against net.rw --data inputs.npz --json
  roundwise evaluate deeplab.rw --against net.py:deeplab --data VOC2012/ --size 513

MODEL_OR_FILE is a .rw file, an .onnx file (it runs in ONNX Runtime, on the CPU), or a model as for `quantize`; a .pt2
program needs --trust-program. The options for weights apply to each of the two networks that takes weights.
"""


@final
@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and on which samples."""

    against: str | None = option(
        MODEL, "Another network, the reference: how often do both predict the same?", metavar="MODEL_OR_FILE"
    )
    against_weights: Path | None = file(MODEL, "Weights of the reference.  [default: those of MODEL_OR_FILE]")
    no_labels: bool = flag(DATA, "Ignore labels and masks in the data; only compare with --against.")
    seed: int = option(ADVANCED, "Of the choice that --limit makes.", default="0", type=seed, metavar="N")

    def check(self, model: str, source: WeightSource | None, labels: LabelOptions, label_key: str | None) -> None:
        """Make sure that the options fit together.

        Raises:
            click.UsageError: they do not.
        """
        if self.no_labels and self.against is None:
            raise click.UsageError("--no-labels goes with --against: without labels, a network can only be compared.")
        if self.no_labels and (labels.labels, labels.class_list, label_key) != (None, None, None):
            raise click.UsageError("--no-labels contradicts --labels, --label-key and --classes. Leave it out.")
        specs = [model] if self.against is None else [model, self.against]
        if source is not None and not any(map(takes_weights, specs)):
            raise click.UsageError(
                f"{' and '.join(specs)}: the weights are in the file; leave out the options for weights."
            )
        if self.against_weights is not None and (self.against is None or not takes_weights(self.against)):
            raise click.UsageError("--against-weights needs --against with a network that takes weights. Leave it out.")


@as_command(HELP, click.Argument(["model"], metavar="MODEL_OR_FILE"))
def command(
    model: str,
    weights: WeightOptions,
    samples: SampleOptions,
    labels: LabelOptions,
    compare: CompareOptions,
    batch: BatchOptions,
    run: RunOptions,
) -> None:
    """Run `roundwise evaluate`."""
    started = time.perf_counter()
    data = samples.require()
    source = weights.source(compare.seed)
    compare.check(model, source, labels, samples.label_key)
    network = weights.open(model, source, run.device)
    reference = None
    if compare.against is not None:
        other = source if compare.against_weights is None else FromFile(compare.against_weights)
        reference = weights.open(compare.against, other, run.device)

    own = network.preprocessing or (reference.preprocessing if reference is not None else None)
    reading, preprocessing_source = samples.reading(own, compare.seed)
    dataset = load_data(
        data,
        replace(
            reading,
            want_labels=not compare.no_labels,
            class_list=labels.class_list,
            labels=labels.labels,
            split=samples.split or ("val" if is_voc(data) else None),  # the same images with and without their masks
        ),
    )
    describe("data", dataset, preprocessing_source)
    if dataset.labels is None and dataset.masks is None and reference is None:
        raise click.UsageError(
            f"there is nothing to measure: {data} has no labels. Give --labels FILE, a folder with one folder per "
            "class or with masks in Pascal VOC layout, or --against MODEL to compare two networks."
        )
    if dataset.counted is not None:
        check_first_batch(network, dataset, batch.batch_size)
    evaluation = measure(network, dataset, batch.batch_size, against=reference)
    if run.as_json:
        show_json(
            {
                "model": model,
                "against": compare.against,
                "data": dataset.description,
                "preprocessing": dataset.preprocessing,
                **evaluation.as_dict(),
                "seconds": time.perf_counter() - started,
            }
        )
        return
    click.echo(model if compare.against is None else f"{model}, compared with {compare.against}")
    click.echo(str(evaluation))
