"""Finished runs, one line each, so that a table of hours that was interrupted goes on where it was."""

from __future__ import annotations

import json
import reprlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from roundwise.errors import FileFormatError

BEGINNING = '{"run": '
"""Of every line."""

MOST = sys.float_info.max
"""Seconds: JSON knows whole numbers that are no float."""


@final
@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        score: in percent.
        seconds: to quantize, without the time to measure.
    """

    score: float
    seconds: float


@final
class Journal:
    """Outcomes by what was run, in a file if there is one. It is read at once, so that a wrong file is told at once.

    Args:
        path: may not exist yet; None keeps outcomes in memory alone.

    Raises:
        FileFormatError: the file is something else, or a figure in it cannot be one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known = dict(_read(path)) if path is not None and path.exists() else {}

    def __iter__(self) -> Iterator[str]:
        """What was run."""
        return iter(self._known)

    def get(self, key: str) -> Outcome | None:
        """What is known of a run."""
        return self._known.get(key)

    def add(self, key: str, outcome: Outcome) -> None:
        """Note a run, in the file at once."""
        self._known[key] = outcome
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"run": key, "score": outcome.score, "seconds": outcome.seconds}) + "\n")


def _read(path: Path) -> Iterable[tuple[str, Outcome]]:
    try:
        data = path.read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as a journal: {error}. Give another name.") from error
    *lines, last = text.split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _parse(line, f"{path}, line {number}")
    if not last:
        return
    begun = last.startswith(BEGINNING) or BEGINNING.startswith(last)
    if begun and not _is_json(last):  # a run that was stopped while it wrote: it will be done again
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
        return
    if last.strip():
        yield _parse(last, f"{path}, line {len(lines) + 1}")
    with path.open("ab") as file:  # the next run gets a line of its own
        file.write(b"\n")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(line: str, place: str) -> tuple[str, Outcome]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: brackets in brackets, a thousand deep
        record = line
    match record:
        case {"run": str(key), "score": int() | float() as score, "seconds": int() | float() as seconds}:
            limits = (("score", score, 100, "a percentage, 0 to 100"), ("seconds", seconds, MOST, "a time, 0 or more"))
            for name, value, most, what in limits:
                if isinstance(value, bool) or not 0 <= value <= most:
                    raise FileFormatError(
                        f"{place}: {name!r} is {reprlib.repr(value)}, which is not {what}; so a table would be wrong. "
                        "Remove the line, and its run is done again."
                    )
            return key, Outcome(float(score), float(seconds))
    raise FileFormatError(
        f"{place}: {line[:60]!r} is not the line of a finished run, which has 'run', 'score' and 'seconds'; so this is "
        "no journal of a reproduction. Give another name or remove the file; or remove the line, where the others are "
        "lines of runs."
    )
