"""`roundwise quantize`: a trained network in, an accurate low-bit network out."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from roundwise import quantize
from roundwise.cli.accuracy import before_and_after, check_labels, measure
from roundwise.cli.datafree import check_data_or_none, no_data
from roundwise.cli.models import load_model
from roundwise.cli.options import DataRequest, data_options, move, weight_options, weight_source
from roundwise.cli.outputs import check_outputs, check_targets, write_outputs, write_report
from roundwise.cli.parameters import EXISTING_FILE, Device, Memory, Seed, Shape, default
from roundwise.cli.recipes import RecipeOptions, build_recipe, describe, describe_methods
from roundwise.cli.terminal import exits, layer_progress, say, show_json
from roundwise.engine.calibration import BATCH
from roundwise.evaluation.data import Dataset, load_data
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.numerics.grid import BITS, Granularity, PerChannel, PerGroup, PerTensor
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import Activations, granularity_name
from roundwise.recipe.stages import Quantize

DEFAULT = Recipe().stage(Quantize)


HELP = """
Give a trained network low-bit weights, from a few hundred unlabelled inputs.

\b
MODEL is one of
  torchvision:NAME     with --weights FILE, --pretrained or --random-weights
  timm:NAME            likewise
  file.py:function     what the function returns; --weights optional
  program.pt2          a program of torch.export (only from people you trust)

\b
Examples:
  roundwise quantize torchvision:resnet18 --pretrained --data photos/ --limit 256 --out resnet18.rw
  roundwise quantize timm:mobilenetv2_100 --weights mine.safetensors --data photos/ --out mine.onnx
  roundwise quantize net.py:build --data inputs.npz --bits 3 --per-tensor --set iterations=10000
  roundwise quantize net.py:build --data inputs.npy --activations 8 --out integer.onnx
  roundwise quantize net.py:build --data inputs.npy --override classifier=8 --override 'stem.*=float'
  roundwise quantize net.py:build --data inputs.npz --out net.rw --report net.html
  roundwise quantize timm:mobilenetv2_100 --pretrained --data-free --activations 8 --out mobilenet.onnx
"""


class MethodsCommand(click.Command):
    """A command whose help ends with the methods there are, read from their tables."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        tables: dict[str, dict[str, type]] = {
            "Rewrites": REWRITES,
            "Rounding methods": ROUNDING_SOLVERS,
            "Range estimation": RANGE_ESTIMATORS,
            "Correction": CORRECTIONS,
            "Activations (--set activations.NAME=VALUE)": {"activations": Activations},
            "Ranges of activations": ACTIVATION_RANGES,
        }
        for title, table in tables.items():
            with formatter.section(title):
                formatter.write_dl(describe_methods(table))
        super().format_epilog(ctx, formatter)


@click.command(
    "quantize",
    cls=MethodsCommand,
    help=HELP,
    epilog="""
    Exit codes: 0 done; 1 it cannot be done, and the message on stderr says why; 2 wrong usage; 130 stopped by Ctrl-C.
    Output files appear complete or not at all.
    """,
)
@click.argument("model")
@weight_options
@partial(data_options, required=False)
@click.option(
    "--data-free",
    is_flag=True,
    help="Use no data at all: 8 bits, rounded to nearest after equalization, biases corrected by what batch-norm "
    "tells. Other options change that, but methods that need data are refused. No error is measured.",
)
@click.option(
    "--input-size",
    type=Shape(),
    help="With --data-free: the size of one input, such as 3x224x224." + default("what MODEL states"),
)
@click.option(
    "--bits",
    type=click.Choice([str(bits) for bits in BITS]),
    help="Bits of a weight." + default(DEFAULT.weights.bits),
)
@click.option("--per-tensor", is_flag=True, help="One scale for each weight tensor.")
@click.option(
    "--per-channel",
    is_flag=True,
    help="One scale for each output channel." + default(granularity_name(DEFAULT.weights.granularity)),
)
@click.option("--per-group", type=click.IntRange(2), metavar="N", help="One scale for each N neighbouring columns.")
@click.option("--asymmetric", is_flag=True, help="Unsigned codes with a zero point, instead of signed codes around 0.")
@click.option(
    "--ranges",
    type=click.Choice(list(RANGE_ESTIMATORS)),
    help="How scales are chosen; explained below." + default(describe(DEFAULT.weights.ranges, RANGE_ESTIMATORS)),
)
@click.option(
    "--rounding",
    type=click.Choice(list(ROUNDING_SOLVERS)),
    help="How codes are chosen; explained below." + default(describe(DEFAULT.rounding, ROUNDING_SOLVERS)),
)
@click.option(
    "--rewrite",
    "rewrites",
    type=click.Choice([*REWRITES, "none"]),
    multiple=True,
    help="Change the float network first, but not its outputs; explained below. Repeatable, in order."
    + default(
        "cross-layer-equalization with --per-tensor, high-bias-absorption after it with --activations, else none"
    ),
)
@click.option(
    "--correction",
    type=click.Choice([*CORRECTIONS, "none"]),
    help="What biases do about the error that codes leave; explained below." + default("none"),
)
@click.option(
    "--activations",
    type=click.Choice([*map(str, BITS), "float"]),
    help="Quantize what flows between operations too, to this many bits." + default("float"),
)
@click.option(
    "--activation-ranges",
    type=click.Choice(list(ACTIVATION_RANGES)),
    help="How ranges of activations are chosen; explained below."
    + default(describe(Activations().ranges, ACTIVATION_RANGES)),
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the rounding method; with ranges.NAME=VALUE of range estimation, activations.NAME=VALUE of "
    "activations, activations.ranges.NAME=VALUE of their ranges, rewrites.REWRITE.NAME=VALUE of a rewrite. Repeatable.",
)
@click.option(
    "--override",
    "overrides",
    multiple=True,
    metavar="LAYER=BITS",
    help="Other bits for a layer (8), another granularity (per-tensor, per-channel, per-group:32), or both "
    "(8,per-tensor); or LAYER=float to leave it. LAYER may be a glob. Repeatable: the last match counts, and changes "
    "what was said of the same LAYER before, here or in the recipe.",
)
@click.option("--recipe", "file", type=EXISTING_FILE, help="A recipe in TOML; options change what it says.")
@click.option("--seed", type=Seed(), help="Of every random choice." + default(Recipe().seed))
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Samples that run through the network at a time." + default("32; on a CPU fewer where they are large"),
)
@click.option(
    "--memory-budget",
    type=Memory(),
    help="Activations kept in memory, such as 2GiB; the rest goes to temporary files."
    + default("half of what is free"),
)
@click.option("--device", type=Device(), default="cpu", show_default=True, help="Where the network runs: cpu, cuda.")
@click.option(
    "--out",
    "-o",
    "outputs",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Where to: .rw (Roundwise's own file) or .onnx. Repeatable.",
)
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    help="Write the report as one .html page: every layer's errors, weights and grid, and how to do it again.",
)
@click.option(
    "--labels",
    type=EXISTING_FILE,
    help="Labels of the samples, in their order, so that --report tells the accuracy before and after: one number a "
    "line (.txt), or an array file. Labels in the file of --data are used where --label-key names them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@exits
def command(
    model: str,
    num_classes: int | None,
    device: torch.device,
    outputs: tuple[Path, ...],
    page: Path | None,
    labels: Path | None,
    as_json: bool,
    data_free: bool,
    **options: Any,
) -> None:
    """Run `roundwise quantize`."""
    started = time.perf_counter()
    check_data_or_none(options, data_free=data_free, labels=labels)
    check_outputs(outputs, page)
    input_size = options.pop("input_size")
    request = DataRequest.take(options)
    want_labels = not data_free and check_labels(labels, request, page)
    granularity = _granularity(**{name: options.pop(name) for name in ("per_tensor", "per_channel", "per_group")})
    bits, activations = options.pop("bits"), options.pop("activations")
    source = weight_source(options, seed=options["seed"] or Recipe().seed)
    recipe = build_recipe(
        RecipeOptions(
            granularity=granularity,
            bits=None if bits is None else int(bits),
            activations=None if activations is None else 0 if activations == "float" else int(activations),
            data_free=data_free,
            **options,
        )
    )
    check_targets(outputs, recipe)

    loaded = load_model(model, source, num_classes)
    for note in loaded.notes:
        say(f"{model}: {note}")
    dataset: Dataset | None = None
    inputs: Any = None
    facts = {"model": model}
    if data_free:
        inputs, recipe, facts["samples"] = no_data(loaded, request, input_size, recipe)
    else:
        data, preprocessing_source = request.options(loaded.preprocessing, recipe.seed)
        dataset = load_data(request.data, replace(data, want_labels=want_labels, labels=labels))
        inputs, facts["samples"] = dataset.batches(recipe.batch_size or BATCH), dataset.description
        if dataset.preprocessing is not None:
            facts["images"] = f"{dataset.preprocessing} ({preprocessing_source})"
    say(f"data: {facts['samples']}")
    if "images" in facts:
        say(f"images: {facts['images']}")
    network = move(loaded.network, device)
    before = None
    if dataset is not None and want_labels:
        before = measure(model, network, dataset, recipe.batch_size or BATCH, device)
    with layer_progress() as progress:
        quantized = quantize(network, inputs, recipe, progress=progress)
    if not as_json:
        # Before the files are written, so that the report of a long run is there even if one of them fails.
        click.echo(str(quantized.report))
        sys.stdout.flush()
    accuracy: dict[str, tuple[float, float]] = {}
    if before is not None and dataset is not None:
        after = measure("the quantized network", quantized, dataset, recipe.batch_size or BATCH, device)
        accuracy = before_and_after(before, after)
    written = write_outputs(quantized, outputs)
    if page is not None:
        written.append(write_report(quantized, page, title=model, facts=facts, accuracy=accuracy))
    if as_json:
        show_json(
            {
                "model": model,
                "data": facts["samples"],
                "preprocessing": None if dataset is None else _text(dataset.preprocessing),
                "recipe": quantized.recipe.as_dict(),
                "report": quantized.report.as_dict(),
                "versions": quantized.versions,
                "accuracy": {name: {"float": was, "quantized": now} for name, (was, now) in accuracy.items()},
                "outputs": [figures for figures, _ in written],
                "seconds": time.perf_counter() - started,
            }
        )
        return
    for name, (was, now) in accuracy.items():
        click.echo(f"{name} on the calibration samples: {was:.2%} → {now:.2%}")
    for _, text in written:
        click.echo(f"written: {text}")
    if not outputs:
        say("the network was not written; give --out model.rw or --out model.onnx to keep the result")


def _text(thing: object | None) -> str | None:
    return None if thing is None else str(thing)


def _granularity(per_tensor: bool, per_channel: bool, per_group: int | None) -> Granularity | None:
    if sum((per_tensor, per_channel, per_group is not None)) > 1:
        raise click.UsageError("--per-tensor, --per-channel and --per-group exclude each other.")
    if per_tensor:
        return PerTensor()
    if per_channel:
        return PerChannel()
    return None if per_group is None else PerGroup(per_group)
