"""Finished runs, one per line, so that an interrupted table of many hours continues where it stopped."""

from __future__ import annotations

import io
import json
import reprlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from roundwise.errors import FileFormatError
from roundwise.files import lines

BEGINNING = '{"run": '
"""Every line that `Journal.add` writes begins with this."""


@final
@dataclass(frozen=True)
class Outcome:
    """The result of one run.

    Attributes:
        score: in percent.
        seconds: to quantize, without the time to measure.
    """

    score: float
    seconds: float


@final
class Journal:
    """Outcomes by the key of their run, kept in a file if there is one. The file is read, and checked, at once.

    Args:
        path: need not exist yet; None keeps outcomes in memory only.

    Raises:
        FileFormatError: the file is not a journal, or a figure in it is impossible.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known = dict(_read(path)) if path is not None and path.exists() else {}

    def __iter__(self) -> Iterator[str]:
        """The keys of all runs."""
        return iter(self._known)

    def get(self, key: str) -> Outcome | None:
        """The outcome of a run, or None if it is not finished."""
        return self._known.get(key)

    def add(self, key: str, outcome: Outcome) -> None:
        """Keep the outcome of a run; in the file at once.

        Raises:
            FileFormatError: the file cannot be written, or another program has broken it.
        """
        self._known[key] = outcome
        if self._path is not None:
            line = json.dumps({"run": key, "score": outcome.score, "seconds": outcome.seconds}) + "\n"
            with lines(self._path, FileFormatError) as file:
                _finished(file, self._path)
                file.write(line.encode())


def _read(path: Path) -> Iterable[tuple[str, Outcome]]:
    with lines(path, FileFormatError) as file:
        text = _finished(file, path)
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parse(line, f"{path}, line {number}")


def _finished(file: io.FileIO, path: Path) -> str:
    """The content of a journal, up to its last whole line; a line that was not written to its end is removed."""
    file.seek(0)
    data = file.read()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} cannot be read as a journal: {error}. Give another name.") from error
    rest, end, last = text.rpartition("\n")
    if not last:
        return text
    begun = last.startswith(BEGINNING) or BEGINNING.startswith(last)
    if begun and _json(last) is None:  # the run was stopped while it wrote this line: it will be run again
        file.truncate(data.rfind(b"\n") + 1)
        return rest + end
    if last.strip():
        _parse(last, f"{path}, line {text.count(chr(10)) + 1}")
    file.write(b"\n")  # the next run begins on a line of its own
    return text + "\n"


def _json(line: str) -> Any:
    """The line as data; None if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: brackets nested a thousand times
        return None


def _parse(line: str, place: str) -> tuple[str, Outcome]:
    match _json(line):
        case {"run": str(key), "score": score, "seconds": seconds} if _within(score, 100) and _within(
            seconds, sys.float_info.max
        ):
            return key, Outcome(float(score), float(seconds))
    raise FileFormatError(
        f"{place}: {reprlib.repr(line)} is not a finished run, which has 'run' (a text), 'score' (a percentage, 0 to "
        "100) and 'seconds' (0 or more). Remove the line, and its run is done again; if the whole file is no journal "
        "of a reproduction, give another name."
    )


def _within(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most
