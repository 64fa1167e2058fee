"""Roundwise's own file: the model as it is, to load again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from roundwise.artifacts.model import Model
from roundwise.exporters.interface import Check, ExportedFile, Exporter
from roundwise.targets import Target
from roundwise.wording import human_bytes


@final
@dataclass(frozen=True)
class SavedFile(ExportedFile):
    """A `.rw` file that was written.

    Attributes:
        path: the file.
        bytes: its size.
    """

    path: Path
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {"path": str(self.path), "bytes": self.bytes}

    def __str__(self) -> str:
        return f"{self.path}: {human_bytes(self.bytes)}"


@final
class RwExporter(Exporter):
    """Saves a model as `Model.save` does."""

    title: ClassVar[str] = "Roundwise"
    suffixes: ClassVar[tuple[str, ...]] = (".rw",)
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None
    targets: ClassVar[tuple[Target, ...]] = ()
    checks: ClassVar[bool] = False

    def write(self, model: Model, path: Path, check: Check, target: Target | None) -> SavedFile:
        model.save(path)
        return SavedFile(path, path.stat().st_size)
