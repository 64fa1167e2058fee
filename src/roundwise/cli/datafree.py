"""`--data-free`: what an input looks like, where there is none, and between which numbers it lies."""

from __future__ import annotations

from dataclasses import replace

import click
from torch.export import ExportedProgram

from roundwise.cli.models import LoadedModel, stated_preprocessing
from roundwise.cli.options import DataRequest
from roundwise.engine.calibration import DataFree
from roundwise.errors import ModelError
from roundwise.methods.activations import ActivationBatchNorm
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Quantize

_OF_DATA = ("split", "limit", "input_key", "label_key")


def check_data_or_none(options: dict[str, object], *, data_free: bool, labels: object) -> None:
    """Make sure that there is data or `--data-free`, and not something of both.

    Raises:
        click.UsageError: neither, both, or options that say something of data there is none of.
    """
    if not data_free:
        if options["data"] is None:
            raise click.UsageError("Missing option '--data'. (--data-free quantizes without any data.)")
        if options["input_size"] is not None:
            raise click.UsageError("--input-size goes with --data-free; elsewhere the data has a size.")
        return
    named = [name for name in ("data", *_OF_DATA) if options[name] is not None]
    named += ["labels"] if labels is not None else []
    if named:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in named)
        raise click.UsageError(f"--data-free uses no data; leave out {words}, or --data-free.")


def no_data(
    loaded: LoadedModel, request: DataRequest, size: tuple[int, ...] | None, recipe: Recipe
) -> tuple[DataFree, Recipe, str]:
    """What stands for the data, the recipe with the limits of the inputs in it, and where both are from.

    Raises:
        ModelError: nothing says what an input looks like.
    """
    stated = loaded.preprocessing if request.preprocess_as is None else stated_preprocessing(request.preprocess_as)
    asked = request.mean is not None or request.std is not None
    preprocessing = None
    if stated is not None or asked or request.size is not None:
        given, _ = request.options(stated, recipe.seed)
        preprocessing = given.preprocessing
    if preprocessing is not None and (stated is not None or asked):
        ends = [[(end - m) / s for m, s in zip(preprocessing.mean, preprocessing.std, strict=True)] for end in (0, 1)]
        recipe = _with_limits(recipe, min(ends[0]), max(ends[1]))
    if size is not None:
        return DataFree(size), recipe, f"none; inputs of {_times(size)} (--input-size)"
    program = loaded.network
    if isinstance(program, ExportedProgram) and program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return DataFree(kwargs or args), recipe, "none; inputs as the program was exported with"
    if preprocessing is None or preprocessing.crop is None:
        raise ModelError(
            f"--data-free: nothing says what an input of {loaded.name} looks like. Give the size of one, such as "
            "--input-size 3x224x224."
        )
    size = (len(preprocessing.mean), *preprocessing.crop)
    return DataFree(size), recipe, f"none; inputs of {_times(size)}"


def _with_limits(recipe: Recipe, low: float, high: float) -> Recipe:
    """With the limits of the network's inputs, where activations are quantized by batch-norm and none were given."""
    activations = recipe.stage(Quantize).activations
    if activations is None or not isinstance(activations.ranges, ActivationBatchNorm):
        return recipe
    if activations.ranges.input_low is not None:
        return recipe
    ranges = replace(activations.ranges, input_low=low, input_high=high)
    return recipe.with_settings(Quantize, activations=replace(activations, ranges=ranges))


def _times(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
