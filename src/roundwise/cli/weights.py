"""Options that say where the weights of a network come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import click
import torch

from roundwise.cli.options import ADVANCED, MODEL, file, flag, number
from roundwise.cli.parameters import EXISTING_FILE
from roundwise.cli.terminal import say, wrong_usage
from roundwise.errors import FileFormatError
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
    trust_program: bool = flag(MODEL, "Read a .pt2 program, which can run code that is in it: trust its author.")
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
        _check_there(model)
        self._check_trust(model)
        with wrong_usage():
            loaded = load_model(model, self.source(seed), self.num_classes)
        _tell(model, loaded.notes)
        return loaded

    def open(self, model: str, source: WeightSource | None, device: torch.device) -> Runnable:
        """As `open_runnable`; options that do not go with the model are wrong usage."""
        _check_there(model)
        self._check_trust(model)
        with wrong_usage():
            runnable = open_runnable(model, source, device, self.num_classes)
        _tell(model, runnable.notes)
        return runnable

    def _check_trust(self, model: str) -> None:
        if model.lower().endswith(".pt2") and not self.trust_program:
            raise FileFormatError(
                f"{model} is a program of torch.export, and PyTorch can run code that is in such a file while it reads "
                "it. If it comes from you or from people you trust, give --trust-program."
            )


def _check_there(model: str) -> None:
    """Make sure that the file that a model is in exists.

    Raises:
        click.UsageError: it does not; names files with similar names.
    """
    path, _, _ = model.rpartition(":")
    name = path if path.endswith(".py") else model
    if Path(name).suffix.lower() in (".py", ".pt2", ".rw", ".onnx", ".xml"):
        EXISTING_FILE.convert(name, None, None)


def _tell(model: str, notes: Sequence[str]) -> None:
    for note in notes:
        say(f"{model}: {note}")
