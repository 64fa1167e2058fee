"""`roundwise quantize`: a trained network in, an accurate low-bit network out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, final

import click

from roundwise import quantize
from roundwise.cli.datafree import DataFreeOptions
from roundwise.cli.measuring import CheckOptions
from roundwise.cli.measuring import accuracy as accuracy_of
from roundwise.cli.options import ADVANCED, RunOptions, as_command, option
from roundwise.cli.outputs import check_outputs, check_targets
from roundwise.cli.parameters import dimension
from roundwise.cli.recipes import RecipeOptions, changed, first_recipe
from roundwise.cli.results import FileOptions, Run, deliver, show_report
from roundwise.cli.samples import SampleOptions, describe
from roundwise.cli.terminal import layer_progress, say, wrong_usage
from roundwise.cli.weights import WeightOptions
from roundwise.data.dataset import Dataset, load_data
from roundwise.engine.calibration import BATCH
from roundwise.graph.sizes import Dynamic
from roundwise.loading.models import move
from roundwise.loading.runnable import run_on
from roundwise.recipe.recipe import Recipe

HELP = """
Give a trained network low-bit weights, from a few hundred unlabelled inputs.

\b
  roundwise quantize torchvision:resnet18 --pretrained --data photos/ --limit 256 --out net.rw
  roundwise quantize net.py:build --data x.npz --bits 3 --override classifier=8 --report net.html
  roundwise quantize timm:resnet50 --pretrained --data-free --activations 8 --out net.onnx

MODEL is torchvision:NAME or timm:NAME, file.py:function (the network that the function returns), or program.pt2 (a
program of torch.export; reading one can run code that is in it, so it needs --trust-program).
"""


@final
@dataclass(frozen=True)
class SizeOptions:
    """Which sizes of the input may differ between calls of the quantized network."""

    dynamic: tuple[tuple[str, int, str], ...] = option(
        ADVANCED,
        "Let a dimension of an input have other sizes than in the data, such as x:2=height. Repeatable.",
        default=(),
        type=dimension,
        metavar="INPUT:DIM=NAME",
    )

    def as_mapping(self) -> Dynamic:
        """The dimensions as `quantize` takes them."""
        named: dict[str, dict[int, str]] = {}
        for name, dim, size in self.dynamic:
            named.setdefault(name, {})[dim] = size
        return named


@as_command(HELP, click.Argument(["model"]))
def command(
    model: str,
    weights: WeightOptions,
    samples: SampleOptions,
    data_free: DataFreeOptions,
    options: RecipeOptions,
    sizes: SizeOptions,
    output: FileOptions,
    check: CheckOptions,
    run: RunOptions,
) -> None:
    """Run `roundwise quantize`."""
    started = time.perf_counter()
    data_free.check(samples, check.labels)
    check_outputs(output.out, output.report)
    want_labels = check.wants_accuracy(samples, output.report)
    recipe = first_recipe(options, data_free=data_free.data_free)
    with wrong_usage():
        recipe = changed(recipe, options, data_free=data_free.data_free)
    check_targets(output.out, recipe)

    loaded = weights.load(model, options.seed or Recipe().seed)
    dataset: Dataset | None = None
    inputs: Any = None
    facts = {"model": model}
    batch_size = recipe.batch_size or BATCH
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
    network = move(loaded.network, run.device)
    # Before the long run, so that labels that do not fit the network end the command here.
    before = {}
    if dataset is not None and want_labels:
        before = accuracy_of(run_on(run.device, model, network), dataset, batch_size)
    with layer_progress() as progress:
        quantized = quantize(network, inputs, recipe, dynamic=sizes.as_mapping(), progress=progress)
    show_report(quantized, as_json=run.as_json)
    accuracy: dict[str, tuple[float, float]] = {}
    if dataset is not None and before:
        after = accuracy_of(run_on(run.device, "the quantized network", quantized), dataset, batch_size)
        accuracy = {name: (before[name], after[name]) for name in before}
    deliver(
        quantized,
        output,
        Run(model, facts, None if dataset is None else dataset.preprocessing, accuracy, started),
        on="the calibration samples",
        as_json=run.as_json,
    )
