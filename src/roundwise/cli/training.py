"""Options about training: how long, from what, and where its state is kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import click
import torch.utils.data

from roundwise.cli.options import ADVANCED, DATA, TRAINING, choice, number, option
from roundwise.cli.parameters import EXISTING_PATH, writable
from roundwise.cli.recipes import default
from roundwise.data.dataset import Dataset
from roundwise.methods.training import LEARNED_QUANTIZATIONS
from roundwise.recipe.finetune import KINDS, Finetune
from roundwise.recipe.recipe import Recipe

DEFAULTS = Finetune()

READERS = 8
"""Threads that read the samples of a batch. More of them are faster only where there are more cores."""


def _kinds(text: str) -> tuple[str, ...]:
    """Read `scales,biases`."""
    kinds = tuple(part.strip() for part in text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise click.BadParameter(
                f"'{kind}' is no kind of parameter. Write some of {', '.join(KINDS)}, with commas."
            )
    return kinds


@final
@dataclass(frozen=True)
class TrainOptions:
    """The options that shape training; None where the user gave none."""

    epochs: int | None = number(TRAINING, "Passes over the samples." + default(DEFAULTS.epochs))
    learning_rate: float | None = option(
        TRAINING, "At the start; it falls to 0." + default(DEFAULTS.learning_rate), type=float, metavar="X"
    )
    label_weight: float | None = option(
        TRAINING,
        "Share of labels in the loss, 0 to 1; the rest: the float network." + default("0"),
        type=float,
        metavar="X",
    )
    only: tuple[str, ...] | None = option(
        TRAINING, f"Train only these: some of {', '.join(KINDS)}, with commas.", type=_kinds, metavar="KINDS"
    )
    journal: Path | None = option(
        TRAINING,
        "Keep the state of training here; the same command goes on after a kill.",
        type=writable,
        metavar="FOLDER",
    )
    calibration: Path | None = option(
        DATA, "Samples for what comes before training." + default("1,024 of --data"), type=EXISTING_PATH, metavar="PATH"
    )
    quantization: str | None = choice(
        ADVANCED, "What is learned of quantizers." + default("lsq-plus"), LEARNED_QUANTIZATIONS, "--training"
    )

    def check(self) -> None:
        """Make sure that the journal can be a folder.

        Raises:
            click.UsageError: it is something else.
        """
        if self.journal is not None and self.journal.exists() and not self.journal.is_dir():
            raise click.UsageError(
                f"--journal {self.journal} is not a folder; training keeps several files there. Give another name."
            )

    def applied(self, recipe: Recipe, batch_size: int | None) -> Recipe:
        """The recipe, with a stage `Finetune` at its end if it has none, changed as the options say.

        Raises:
            RecipeError: a value is out of range.
        """
        if not any(isinstance(stage, Finetune) for stage in recipe.stages):
            recipe = Recipe((*recipe.stages, Finetune()), recipe.seed, recipe.batch_size, recipe.memory_budget)
        given = {
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "labels": self.label_weight,
            "only": self.only,
            "batch_size": batch_size,
            "quantization": None if self.quantization is None else LEARNED_QUANTIZATIONS[self.quantization](),
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return recipe.with_settings(Finetune, **changes)


@final
class TrainingSamples(torch.utils.data.Dataset[Any]):
    """A data set of files as something to train on: pairs of sample and label, or samples alone."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self._dataset.inputs.read(self._dataset.indices[index])
        return sample if self._dataset.labels is None else (sample, self._dataset.labels[index])

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Several samples, read on several threads."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self.__getitem__, indices))
