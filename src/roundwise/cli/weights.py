"""Options that say where the weights of a network come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

import click
import torch

from roundwise.cli.options import ADVANCED, MODEL, file, flag, number
from roundwise.cli.terminal import say
from roundwise.errors import RecipeError
from roundwise.loading.models import LoadedModel, load_model
from roundwise.loading.runnable import Runnable, open_runnable
from roundwise.loading.weights import PICKLES, FromFile, Pretrained, Random, WeightSource


@final
@dataclass(frozen=True)
class WeightOptions:
    """Where the weights of a network come from.

    Raises:
        click.UsageError: from more than one place.
    """

    weights: Path | None = file(MODEL, f"A state dict, tensors only: .safetensors {' '.join(PICKLES)}.")
    pretrained: bool = flag(MODEL, "Download the weights that torchvision or timm offer.")
    random_weights: bool = flag(MODEL, "Leave the network untrained, to try things out.")
    num_classes: int | None = number(ADVANCED, "Classes that --weights were trained for.")

    def __post_init__(self) -> None:
        if sum((self.weights is not None, self.pretrained, self.random_weights)) > 1:
            raise click.UsageError("--weights, --pretrained and --random-weights exclude each other. Give one of them.")

    def source(self, seed: int = 0) -> WeightSource | None:
        """The source that the user chose; the seed is for random weights."""
        if self.weights is not None:
            return FromFile(self.weights)
        if self.pretrained:
            return Pretrained()
        return Random(seed) if self.random_weights else None

    def load(self, model: str, seed: int = 0) -> LoadedModel:
        """As `load_model`; options that do not go with the model are wrong usage."""
        with _wrong_usage():
            loaded = load_model(model, self.source(seed), self.num_classes)
        _tell(model, loaded.notes)
        return loaded

    def open(self, model: str, source: WeightSource | None, device: torch.device) -> Runnable:
        """As `open_runnable`; options that do not go with the model are wrong usage."""
        with _wrong_usage():
            runnable = open_runnable(model, source, device, self.num_classes)
        _tell(model, runnable.notes)
        return runnable


@contextmanager
def _wrong_usage() -> Iterator[None]:
    try:
        yield
    except RecipeError as error:
        raise click.UsageError(str(error)) from error


def _tell(model: str, notes: Sequence[str]) -> None:
    for note in notes:
        say(f"{model}: {note}")
