"""`--data-free`: the size of an input, and the interval of its values, without any data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import click
from torch.export import ExportedProgram

from roundwise.cli.options import ADVANCED, DATA, flag, option
from roundwise.cli.parameters import shape
from roundwise.cli.samples import SampleOptions
from roundwise.engine.calibration import DataFree
from roundwise.errors import ModelError
from roundwise.loading.models import LoadedModel
from roundwise.methods.activations import ActivationBatchNorm
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Quantize


@final
@dataclass(frozen=True)
class DataFreeOptions:
    """Whether there is no data, and what an input looks like then."""

    data_free: bool = flag(
        DATA,
        "Use no data. `quantize` then rounds 8 bits to nearest after equalization, and corrects biases; `compress` "
        "approximates the weights.",
    )
    input_size: tuple[int, ...] | None = option(
        ADVANCED, "With --data-free: the size of one input.  [default: as MODEL]", type=shape, metavar="CxHxW"
    )

    def check(self, samples: SampleOptions, labels: object) -> None:
        """Make sure that the user gave either data or `--data-free`.

        Raises:
            click.UsageError: neither or both, or options about data that is not there.
        """
        if not self.data_free:
            samples.require(", or --data-free to do without any")
            if self.input_size is not None:
                raise click.UsageError("--input-size goes with --data-free; data has its own size. Leave it out.")
            return
        about_data = ("data", "split", "limit", "input_key", "label_key")
        named = [name for name in about_data if getattr(samples, name) is not None]
        named += ["labels"] if labels is not None else []
        if named:
            words = ", ".join(f"--{name.replace('_', '-')}" for name in named)
            raise click.UsageError(f"--data-free uses no data; leave out {words}, or --data-free.")

    def inputs(self, loaded: LoadedModel, samples: SampleOptions, recipe: Recipe) -> tuple[DataFree, Recipe, str]:
        """An input in place of the data, the recipe with the limits of its values, and where the size comes from.

        Raises:
            ModelError: nothing says what an input looks like.
        """
        stated = samples.stated(loaded.preprocessing)
        asked = samples.mean is not None or samples.std is not None
        preprocessing = None
        if stated is not None or asked or samples.size is not None:
            preprocessing = samples.reading(stated, recipe.seed)[0].preprocessing
        if preprocessing is not None and (stated is not None or asked):
            pairs = list(zip(preprocessing.mean, preprocessing.std, strict=True))
            low, high = min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)
            recipe = _with_limits(recipe, low, high)
        program = loaded.network
        if self.input_size is not None:
            size, source = self.input_size, " (--input-size)"
        elif isinstance(program, ExportedProgram) and program.example_inputs is not None:
            args, kwargs = program.example_inputs
            return DataFree(kwargs or args), recipe, "none; inputs as the program was exported with"
        elif preprocessing is not None and preprocessing.crop is not None:
            size, source = (len(preprocessing.mean), *preprocessing.crop), ""
        else:
            raise ModelError(
                f"--data-free: nothing says what an input of {loaded.name} looks like. Give the size of one, such as "
                "--input-size 3x224x224."
            )
        return DataFree(size), recipe, f"none; inputs of {'×'.join(map(str, size))}{source}"


def _with_limits(recipe: Recipe, low: float, high: float) -> Recipe:
    """The recipe with the limits of inputs, if ranges of activations come from batch-norm and have no limits yet."""
    if not any(isinstance(stage, Quantize) for stage in recipe.stages):
        return recipe
    activations = recipe.stage(Quantize).activations
    if activations is None or not isinstance(activations.ranges, ActivationBatchNorm):
        return recipe
    if activations.ranges.input_low is not None:
        return recipe
    ranges = replace(activations.ranges, input_low=low, input_high=high)
    return recipe.with_settings(Quantize, activations=replace(activations, ranges=ranges))
