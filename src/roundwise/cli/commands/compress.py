"""`roundwise compress`: a trained network in, a network with fewer multiplications or parameters out."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from roundwise import compress
from roundwise.artifacts.model import Model
from roundwise.cli.compression import CompressOptions
from roundwise.cli.datafree import DataFreeOptions
from roundwise.cli.latency import latency_in_words
from roundwise.cli.measuring import CheckOptions, check_first_batch, metric_of
from roundwise.cli.options import RunOptions, as_command
from roundwise.cli.outputs import check_outputs, check_targets
from roundwise.cli.preparation import prepare
from roundwise.cli.results import FileOptions, deliver, show_report
from roundwise.cli.samples import SampleOptions
from roundwise.cli.terminal import layer_progress, wrong_usage
from roundwise.cli.weights import WeightOptions
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
    given = prepare(
        loaded, samples, data_free, recipe, run.device, want_labels=want_labels, labels=check.labels, started=started
    )
    metric: Callable[[Model], float] | None = None
    if by_accuracy and given.dataset is not None:
        metric = metric_of(given.dataset, given.batch_size, run.device)
        if given.dataset.counted is not None:
            check_first_batch(run_on(run.device, model, given.network), given.dataset, given.batch_size)
    # Before the long run, so that labels that do not fit the network end the command here.
    before = given.accuracy(given.network, model) if want_labels else {}
    with layer_progress() as progress:
        small = compress(given.network, given.inputs, given.recipe, evaluate=metric, progress=progress)
    show_report(small, as_json=run.as_json)
    after = given.accuracy(small, "the compressed network") if before else {}
    timed = any(isinstance(one, Compress) and one.latency is not None for one in recipe.stages)
    if given.dataset is not None and timed:
        given.facts["latency"] = latency_in_words(given.network, next(iter(given.dataset.batches(1))), small)
        if not run.as_json:
            click.echo(f"latency: {given.facts['latency']}")
    deliver(small, output, given.run(before, after), on="the calibration samples", as_json=run.as_json)
