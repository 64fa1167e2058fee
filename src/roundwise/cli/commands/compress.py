"""`roundwise compress`: a trained network in, a network with fewer multiplications or parameters out."""

from __future__ import annotations

import time
from dataclasses import replace

import click

from roundwise import compress
from roundwise.cli.compression import CompressOptions
from roundwise.cli.measuring import CheckOptions
from roundwise.cli.measuring import accuracy as accuracy_of
from roundwise.cli.options import RunOptions, as_command
from roundwise.cli.outputs import check_outputs, check_targets
from roundwise.cli.results import FileOptions, Run, deliver, show_report
from roundwise.cli.samples import SampleOptions, describe
from roundwise.cli.terminal import layer_progress, wrong_usage
from roundwise.cli.weights import WeightOptions
from roundwise.data.dataset import load_data
from roundwise.engine.calibration import BATCH
from roundwise.loading.models import move
from roundwise.loading.runnable import run_on

HELP = """
Make a trained network smaller and faster, from a few hundred unlabelled inputs: layers become chains of smaller layers.
MODEL is as for `roundwise quantize`.

\b
  roundwise compress timm:resnet18 --pretrained --data photos/ --macs 0.5 --out net.onnx
  roundwise compress net.py:build --data x.npz --parameters 0.4 --method weight-svd --out net.rw
"""


@as_command(HELP, click.Argument(["model"]))
def command(
    model: str,
    weights: WeightOptions,
    samples: SampleOptions,
    options: CompressOptions,
    output: FileOptions,
    check: CheckOptions,
    run: RunOptions,
) -> None:
    """Run `roundwise compress`."""
    started = time.perf_counter()
    data = samples.require()
    check_outputs(output.out, output.report)
    want_labels = check.wants_accuracy(samples, output.report)
    with wrong_usage():
        recipe = options.as_recipe()
    check_targets(output.out, recipe)

    loaded = weights.load(model, recipe.seed)
    batch_size = recipe.batch_size or BATCH
    reading, source = samples.reading(loaded.preprocessing, recipe.seed)
    dataset = load_data(data, replace(reading, want_labels=want_labels, labels=check.labels))
    describe("data", dataset, source)
    facts = {"model": model, "samples": dataset.description}
    if dataset.preprocessing is not None:
        facts["images"] = f"{dataset.preprocessing} ({source})"
    network = move(loaded.network, run.device)
    # Before the long run, so that labels that do not fit the network end the command here.
    before = accuracy_of(run_on(run.device, model, network), dataset, batch_size) if want_labels else {}
    with layer_progress() as progress:
        small = compress(network, dataset.batches(batch_size), recipe, progress=progress)
    show_report(small, as_json=run.as_json)
    accuracy: dict[str, tuple[float, float]] = {}
    if before:
        after = accuracy_of(run_on(run.device, "the compressed network", small), dataset, batch_size)
        accuracy = {name: (before[name], after[name]) for name in before}
    told = Run(model, facts, dataset.preprocessing, accuracy, started)
    deliver(small, output, told, on="the calibration samples", as_json=run.as_json)
