"""`roundwise quantize`: a trained network in, an accurate low-bit network out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import final

import click

from roundwise import quantize
from roundwise.cli.datafree import DataFreeOptions
from roundwise.cli.measuring import CheckOptions
from roundwise.cli.options import ADVANCED, RunOptions, as_command, option
from roundwise.cli.outputs import check_outputs, check_targets
from roundwise.cli.parameters import dimension
from roundwise.cli.preparation import prepare
from roundwise.cli.recipes import RecipeOptions, changed, first_recipe
from roundwise.cli.results import FileOptions, deliver, show_report
from roundwise.cli.samples import SampleOptions
from roundwise.cli.terminal import layer_progress, wrong_usage
from roundwise.cli.weights import WeightOptions
from roundwise.graph.sizes import Dynamic
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
    given = prepare(
        loaded, samples, data_free, recipe, run.device, want_labels=want_labels, labels=check.labels, started=started
    )
    # Before the long run, so that labels that do not fit the network end the command here.
    before = given.accuracy(given.network, model) if want_labels else {}
    with layer_progress() as progress:
        quantized = quantize(given.network, given.inputs, given.recipe, dynamic=sizes.as_mapping(), progress=progress)
    show_report(quantized, as_json=run.as_json)
    after = given.accuracy(quantized, "the quantized network") if before else {}
    deliver(quantized, output, given.run(before, after), on="the calibration samples", as_json=run.as_json)
