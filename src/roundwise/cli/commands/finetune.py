"""`roundwise finetune`: a trained network in, a network out that was trained on with its quantizers."""

from __future__ import annotations

import time
from dataclasses import replace

import click

from roundwise import finetune
from roundwise.cli.measuring import check_first_batch
from roundwise.cli.options import RunOptions, as_command
from roundwise.cli.outputs import check_outputs, check_targets
from roundwise.cli.recipes import RecipeOptions, changed, first_recipe
from roundwise.cli.results import FileOptions, Run, deliver, show_report
from roundwise.cli.samples import LabelOptions, SampleOptions, describe
from roundwise.cli.terminal import layer_progress, wrong_usage
from roundwise.cli.training import TrainingSamples, TrainOptions
from roundwise.cli.weights import WeightOptions
from roundwise.data.dataset import load_data
from roundwise.engine.calibration import BATCH
from roundwise.loading.models import move
from roundwise.loading.runnable import run_on
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.recipe import Recipe

HELP = """
Quantize a network (MODEL is as for `roundwise quantize`) and train it on, with learned scales and offsets. It learns
from the float network's outputs, without labels. The state with the smallest loss on held-out samples is kept.

\b
  roundwise finetune net.py:build --data train.npz --bits 3 --activations 3 --epochs 9 -o net.onnx
  roundwise finetune timm:resnet18 --pretrained --data train/ --journal run/ --out net.rw
"""


@as_command(HELP, click.Argument(["model"]))
def command(
    model: str,
    weights: WeightOptions,
    samples: SampleOptions,
    labels: LabelOptions,
    options: RecipeOptions,
    training: TrainOptions,
    output: FileOptions,
    run: RunOptions,
) -> None:
    """Run `roundwise finetune`."""
    started = time.perf_counter()
    data = samples.require()
    check_outputs(output.out, output.report)
    training.check()
    recipe = first_recipe(options)
    with wrong_usage():
        recipe = changed(training.applied(recipe, options.batch_size), options)
    check_targets(output.out, recipe)

    loaded = weights.load(model, options.seed or Recipe().seed)
    reading, source = samples.reading(loaded.preprocessing, recipe.seed)
    dataset = load_data(data, replace(reading, want_labels=True, labels=labels.labels, class_list=labels.class_list))
    describe("data", dataset, source)
    share = recipe.stage(Finetune).labels
    if share > 0 and dataset.labels is None:
        raise click.UsageError(
            f"the labels count {share:g} in the loss, and {data} has none. Give --labels FILE, a folder with one "
            "folder per class, or an array file with labels; or leave out --label-weight to learn from the float "
            "network alone."
        )
    network = move(loaded.network, run.device)
    batch_size = recipe.batch_size or BATCH
    if dataset.labels is not None and dataset.counted is not None:
        check_first_batch(run_on(run.device, model, network), dataset, batch_size)
    calibration = None
    if training.calibration is not None:
        few = load_data(training.calibration, replace(reading, limit=None))
        describe("calibration", few, source)
        calibration = few.batches(batch_size)
    facts = {"model": model, "samples": dataset.description}
    if dataset.preprocessing is not None:
        facts["images"] = f"{dataset.preprocessing} ({source})"
    with layer_progress() as progress:
        trained = finetune(
            network,
            TrainingSamples(dataset),
            recipe,
            calibration=calibration,
            journal=training.journal,
            progress=progress,
        )
    show_report(trained, as_json=run.as_json)
    told = Run(model, facts, dataset.preprocessing, {}, started)
    deliver(trained, output, told, on="held-out samples", as_json=run.as_json)
