"""What every runtime can do: open a file, say what it takes and gives, and run it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
"""Arrays by the names of a network's inputs or outputs."""


@final
@dataclass(frozen=True)
class FileInput:
    """What a file says about one input.

    Attributes:
        name: of the input.
        dtype: of its numbers, as NumPy calls it.
        shape: the size of each dimension; where it is open, its name, or "" without one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class OpenFile(ABC):
    """A network file that a runtime has loaded."""

    @property
    @abstractmethod
    def inputs(self) -> Sequence[str]:
        """The names of the inputs, in the file's order."""

    @property
    @abstractmethod
    def details(self) -> Sequence[FileInput]:
        """What the file says about each input, in the file's order."""

    @property
    @abstractmethod
    def outputs(self) -> Sequence[str]:
        """The names of the outputs, in the file's order."""

    @abstractmethod
    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs for these inputs, in the order of `outputs`.

        Raises:
            InferenceError: the runtime fails on them.
        """


class Runtime(ABC):
    """A program that runs network files. Implementations are frozen dataclasses; their fields are its settings.

    Attributes:
        title: its name for people.
        suffixes: of the files that it reads, in small letters.
        packages: that it needs, by the names they are imported by.
        extra: of Roundwise that installs them.
    """

    title: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]

    @property
    @abstractmethod
    def version(self) -> str:
        """Of the runtime that is installed.

        Raises:
            InferenceError: it is not installed.
        """

    @abstractmethod
    def open(self, path: Path) -> OpenFile:
        """Load a file.

        Raises:
            InferenceError: the runtime is not installed, or cannot load the file.
        """
