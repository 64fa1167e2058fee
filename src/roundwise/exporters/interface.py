"""What every exporter can do: write a model as a file of one format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from roundwise.artifacts.binding import Arguments
from roundwise.artifacts.model import Model
from roundwise.targets import Target


class ExportedFile(ABC):
    """A file that was written, with what is known about it. Implementations are frozen dataclasses.

    Attributes:
        path: the file.
        bytes: its size, with the sizes of files beside it that it needs.
    """

    path: Path
    bytes: int

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """Plain data: dicts, lists, strings and numbers."""

    @abstractmethod
    def __str__(self) -> str: ...


@final
@dataclass(frozen=True)
class Check:
    """How an export is compared with its model.

    Attributes:
        samples: `(args, kwargs)` to compare on; None takes the samples that the model carries.
        tolerance: the largest relative difference that passes; None leaves it to the exporter.
    """

    samples: Arguments | None = None
    tolerance: float | None = None


class Exporter(ABC):
    """Writes files of one format. Implementations have no state; `EXPORTERS` has one of each.

    Attributes:
        title: the format's name for people.
        suffixes: of its files, in small letters; the first is the usual one.
        packages: that it needs, by the names they are imported by.
        extra: of Roundwise that installs them; None where there are none.
        targets: that files can be written for, the default first; none where a file holds everything that a model can.
        checks: whether a file is run and compared with its model before it is kept.
    """

    title: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    packages: ClassVar[tuple[str, ...]]
    extra: ClassVar[str | None]
    targets: ClassVar[tuple[Target, ...]]
    checks: ClassVar[bool]

    @abstractmethod
    def write(self, model: Model, path: Path, check: Check, target: Target | None) -> ExportedFile:
        """Write the model; the file appears complete or not at all.

        Args:
            model: what to write.
            path: where to, in a folder that exists; an earlier file is replaced.
            check: how to compare the file with the model, if the exporter does.
            target: one of `targets`; None for exporters without targets.

        Raises:
            RoundwiseError: the file cannot be written, or does not agree with the model.
        """
