"""Text files whose line numbers matter: lists of classes, and labels."""

from __future__ import annotations

from pathlib import Path

from roundwise.errors import FileFormatError


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without a byte order mark, surrounding spaces, and empty lines at the end.

    Lines are numbered as in an editor; `str.splitlines` would also split at form feeds.

    Raises:
        FileFormatError: the file is not text in UTF-8.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise FileFormatError(
            f"{path} is not a text file in UTF-8: {error}. Save it again as text in this encoding."
        ) from error
    while lines and not lines[-1]:
        lines.pop()
    return lines
