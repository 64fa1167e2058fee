"""Programs saved with `torch.export.save`. Reading one can run code that is in it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from roundwise.errors import FileFormatError


def load_program(path: Path) -> ExportedProgram:
    """Read a program saved with `torch.export.save`.

    The pickles in such a file may hold tensors only. PyTorch still evaluates its symbolic shapes as expressions, so a
    program from a stranger is not safe to load.

    Raises:
        FileFormatError: the file is missing, broken, refused, or from another version of PyTorch.
    """
    if not path.is_file():
        raise FileFormatError(f"{path}: there is no such file. Check the path.")
    if not zipfile.is_zipfile(path):
        raise FileFormatError(
            f"{path} is not a program of torch.export: it is incomplete, or another kind of file. Save it again with "
            "torch.export.save."
        )
    try:
        with _tensors_only():
            program = torch.export.load(path)
    except Exception as error:  # the loader raises nearly anything on broken files
        raise FileFormatError(
            f"{path} cannot be loaded as a program of torch.export ({type(error).__name__}: {error}). If another "
            f"version of PyTorch than {torch.__version__} wrote it, export it again."
        ) from error
    assert isinstance(program, ExportedProgram)
    return program


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make every `torch.load` refuse pickles that build anything but tensors, even one that asks for more."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
