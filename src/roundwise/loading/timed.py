"""Networks in files, ready to be timed: which runtimes read a file, and inputs of the sizes that it states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from roundwise.artifacts.model import load
from roundwise.errors import FileFormatError, InferenceError, RoundwiseError
from roundwise.loading.programs import load_program
from roundwise.runtimes import RUNTIMES, FileInput
from roundwise.runtimes.interface import Arrays

PYTORCH, IN_PYTORCH = "PyTorch", (".rw", ".pt2")
"""What runs files of Roundwise and of `torch.export`, and their suffixes."""


@final
@dataclass(frozen=True, eq=False)
class TimedFile:
    """A file in a runtime, with inputs.

    Attributes:
        path: the file.
        runtime: its name and version.
        run: runs the network once on the inputs.
    """

    path: Path
    runtime: str
    run: Callable[[], object]


def check_readable(path: Path) -> None:
    """Make sure, before anything runs, that a file is there and that an installed runtime reads it.

    Raises:
        FileFormatError: there is no such file, or nothing reads its suffix.
        InferenceError: no runtime that reads it is installed.
    """
    suffix = path.suffix.lower()
    readers = [runtime for runtime in RUNTIMES.values() if suffix in runtime.suffixes]
    if suffix not in IN_PYTORCH and not readers:
        known = dict.fromkeys((*(one for kind in RUNTIMES.values() for one in kind.suffixes), *IN_PYTORCH))
        raise FileFormatError(f"{path}: no runtime reads files that end in '{suffix}'. Give one of {', '.join(known)}.")
    if not path.is_file():
        raise FileFormatError(f"{path}: there is no such file. Check the path.")
    if readers and not any(map(_installed, readers)):
        names = " or ".join(f'{kind.title} (pip install "roundwise[{kind.extra}]")' for kind in readers)
        raise InferenceError(f"{path} runs in {names}, which is not installed here. Install it.")


def open_timed(path: Path, *, batch: int, threads: int, sizes: Mapping[str, int]) -> list[TimedFile]:
    """A file in each installed runtime that reads it.

    Args:
        path: of the file; `check_readable` has passed it.
        batch: the number of samples, where the file leaves it open.
        threads: of each runtime.
        sizes: of other dimensions that the file leaves open, by their names.

    Raises:
        RoundwiseError: a runtime cannot load the file, or run it on such inputs; or a size is open.
    """
    if path.suffix.lower() in IN_PYTORCH:
        return [_in_pytorch(path, batch, threads)]
    found = []
    for kind in RUNTIMES.values():
        if path.suffix.lower() in kind.suffixes and _installed(kind):
            runtime = kind(threads=threads)  # type: ignore[call-arg]  # all implementations have the setting
            file = runtime.open(path)
            inputs = made_up(path, file.details, batch, sizes)
            file.run(inputs)
            found.append(TimedFile(path, f"{kind.title} {runtime.version}", lambda f=file, x=inputs: f.run(x)))  # type: ignore[misc]
    return found


def made_up(path: Path, inputs: Sequence[FileInput], batch: int, sizes: Mapping[str, int]) -> Arrays:
    """Normal numbers, and zeros for inputs of whole numbers or truth values.

    Raises:
        InferenceError: a dimension besides the first is open, and its size is not given.
    """
    generator, made = np.random.default_rng(0), {}
    for one in inputs:
        shape = []
        for number, size in enumerate(one.shape):
            if isinstance(size, str) and number and size not in sizes:
                raise InferenceError(
                    f"{path}: dimension {number} of input '{one.name}' is open ('{size}'), so there are no inputs of "
                    f"the size that the file states. Give --size {size or 'NAME'}=NUMBER, or export with fixed sizes."
                )
            shape.append(size if isinstance(size, int) else sizes.get(size, batch))
        real = np.dtype(one.dtype).kind == "f"
        made[one.name] = (generator.standard_normal(shape) if real else np.zeros(shape)).astype(one.dtype)
    return made


def _in_pytorch(path: Path, batch: int, threads: int) -> TimedFile:
    network: Any
    if path.suffix.lower() == ".rw":
        network = load(path)
        args, kwargs = network.example(batch)
    else:
        program = load_program(path)
        network, example = program.module(), program.example_inputs
        if example is None:
            raise InferenceError(f"{path} holds no example inputs. Save it with those of torch.export.export.")
        args, kwargs = example

    def run() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.no_grad():
                return network(*args, **kwargs)
        finally:
            torch.set_num_threads(before)

    try:
        run()
    except RoundwiseError:
        raise
    except Exception as error:  # any code can run in here
        raise InferenceError(
            f"{path} fails on its example: {type(error).__name__}: {error}. Export it again."
        ) from error
    return TimedFile(path, f"{PYTORCH} {torch.__version__}", run)


def _installed(runtime: Any) -> bool:
    return all(find_spec(name) is not None for name in runtime.packages)
