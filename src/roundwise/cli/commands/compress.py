"""`roundwise compress`: a trained network in, a network with fewer multiplications or parameters out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from roundwise import compress
from roundwise.artifacts.model import Model
from roundwise.cli.compression import CompressOptions
from roundwise.cli.datafree import DataFreeOptions
from roundwise.cli.latency import latency_in_words
from roundwise.cli.measuring import CheckOptions, check_first_batch, metric_of
from roundwise.cli.measuring import accuracy as accuracy_of
from roundwise.cli.options import RunOptions, as_command
from roundwise.cli.outputs import check_outputs, check_targets
from roundwise.cli.results import FileOptions, Run, deliver, show_report
from roundwise.cli.samples import SampleOptions, describe
from roundwise.cli.terminal import layer_progress, say, wrong_usage
from roundwise.cli.weights import WeightOptions
from roundwise.data.dataset import Dataset, load_data
from roundwise.engine.calibration import BATCH
from roundwise.loading.models import move
from roundwise.loading.runnable import run_on
from roundwise.recipe.compress import Compress

HELP = """
Make a trained network smaller and faster, from a few hundred unlabelled inputs: layers become chains of smaller layers.
MODEL is as for `roundwise quantize`.

\b
  roundwise compress timm:resnet18 --pretrained --data photos/ --macs 0.5 --out net.onnx
  roundwise compress net.py:build --data x.npz --parameters 0.4 --method weight-svd --out net.rw
  roundwise compress net.py:build --data x.npz --latency 0.7 --out net.onnx
  roundwise compress net.py:build --data x.npz --macs 0.5 --choice equal-accuracy-loss --out n.rw
"""


@as_command(HELP, click.Argument(["model"]))
def command(
    model: str,
    weights: WeightOptions,
    samples: SampleOptions,
    data_free: DataFreeOptions,
    options: CompressOptions,
    output: FileOptions,
    check: CheckOptions,
    run: RunOptions,
) -> None:
    """Run `roundwise compress`."""
    started = time.perf_counter()
    data_free.check(samples, check.labels)
    check_outputs(output.out, output.report)
    with wrong_usage():
        recipe = options.as_recipe(data_free=data_free.data_free)
    check_targets(output.out, recipe)
    by_accuracy = any(isinstance(stage, Compress) and stage.choice.evaluates for stage in recipe.stages)
    if by_accuracy and data_free.data_free:
        raise click.UsageError(
            "--choice equal-accuracy-loss compares networks by their accuracy, which --data-free has no labels for. "
            "Give --data with labels, or leave --choice out."
        )
    want_labels = check.wants_accuracy(samples, output.report, needed=by_accuracy)

    loaded = weights.load(model, recipe.seed)
    batch_size = recipe.batch_size or BATCH
    dataset: Dataset | None = None
    inputs: Any = None
    metric: Callable[[Model], float] | None = None
    before: dict[str, float] = {}
    facts = {"model": model}
    network = move(loaded.network, run.device)
    if data_free.data_free:
        inputs, recipe, facts["samples"] = data_free.inputs(loaded, samples, recipe)
        say(f"data: {facts['samples']}")
    else:
        reading, source = samples.reading(loaded.preprocessing, recipe.seed)
        dataset = load_data(samples.require(), replace(reading, want_labels=want_labels, labels=check.labels))
        inputs, facts["samples"] = dataset.batches(batch_size), dataset.description
        describe("data", dataset, source)
        if dataset.preprocessing is not None:
            facts["images"] = f"{dataset.preprocessing} ({source})"
        metric = metric_of(dataset, batch_size, run.device) if by_accuracy else None
        # Before the long run, so that labels that do not fit the network end the command here.
        runnable = run_on(run.device, model, network)
        if by_accuracy and dataset.counted is not None:
            check_first_batch(runnable, dataset, batch_size)
        before = accuracy_of(runnable, dataset, batch_size) if want_labels else {}
    with layer_progress() as progress:
        small = compress(network, inputs, recipe, evaluate=metric, progress=progress)
    show_report(small, as_json=run.as_json)
    accuracy: dict[str, tuple[float, float]] = {}
    if dataset is not None and before:
        after = accuracy_of(run_on(run.device, "the compressed network", small), dataset, batch_size)
        accuracy = {name: (before[name], after[name]) for name in before}
    if dataset is not None and any(isinstance(one, Compress) and one.latency is not None for one in recipe.stages):
        facts["latency"] = latency_in_words(network, next(iter(dataset.batches(1))), small)
        if not run.as_json:
            click.echo(f"latency: {facts['latency']}")
    told = Run(model, facts, None if dataset is None else dataset.preprocessing, accuracy, started)
    deliver(small, output, told, on="the calibration samples", as_json=run.as_json)
