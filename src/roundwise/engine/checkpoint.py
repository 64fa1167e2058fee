"""The state of training in a file, so that a run that was killed goes on where it stopped.

The file holds tensors, numbers and text only, and is read with PyTorch's `weights_only=True`, which runs no code. It
appears complete or not at all. It names the run that it belongs to: another recipe, network or number of samples is
refused.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from roundwise.errors import FileFormatError, RecipeError
from roundwise.files import replacing

FILE = "training.pt"
"""The name of the file in the folder of the run."""


@final
class Checkpoint:
    """The file of one run, in a folder that is made if it does not exist.

    Args:
        folder: of the run.
        run: what identifies the run: `fingerprint` gives it.

    Raises:
        FileFormatError: the folder cannot be made.
    """

    def __init__(self, folder: Path, run: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileFormatError(f"cannot make the folder {folder}: {error.strerror}. Choose another.") from error
        self._path, self._run = folder / FILE, run

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last; None if there is none.

        Raises:
            FileFormatError: the file is damaged.
            RecipeError: it belongs to another run.
        """
        if not self._path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            run = state.pop("run")
        except Exception as error:  # the unpickler raises nearly anything on a damaged file
            raise FileFormatError(
                f"{self._path} cannot be read ({type(error).__name__}: {error}). Remove it, and training starts anew."
            ) from error
        if run != self._run:
            raise RecipeError(
                f"{self._path} is of another run: another recipe, network, or number of samples. Give the run a folder "
                "of its own, or remove the file to start anew."
            )
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; the file before it is replaced.

        Raises:
            FileFormatError: the file cannot be written.
        """
        with replacing(self._path, FileFormatError, also=(RuntimeError,)) as temporary, temporary.open("wb") as file:
            torch.save({**state, "run": self._run}, file)


def fingerprint(recipe: dict[str, Any], tensors: dict[str, Tensor], samples: int | None) -> str:
    """A hash of all that decides what training computes, but for the samples themselves."""
    digest = hashlib.sha256(json.dumps([recipe, samples], sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        plain = tensor.detach().cpu().contiguous()
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()
