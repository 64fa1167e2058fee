"""Sizes, durations, counts and tables for people to read, the name that was meant, text that a terminal can show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NoReturn

import humanize

BEGINNING = 3
"""Letters that are enough for the beginning of a name. With fewer, hints would be guesses."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing them: line ends, escape sequences, changes of direction."""


def human_bytes(count: float) -> str:
    """A number of bytes, with a unit.

    Example:
        >>> human_bytes(1536), human_bytes(999)
        ('1.5 KiB', '999 Bytes')
    """
    return humanize.naturalsize(count, binary=True)


def human_seconds(seconds: float) -> str:
    """A duration, rounded to seconds; from one hour on, to minutes.

    Example:
        >>> human_seconds(200), human_seconds(7380)
        ('3 minutes and 20 seconds', '2 hours and 3 minutes')
    """
    unit = "minutes" if seconds >= 3600 else "seconds"
    return humanize.precisedelta(round(seconds), minimum_unit=unit, format="%.0f")


def milliseconds(seconds: float) -> str:
    """A short time in milliseconds, with three significant digits.

    Example:
        >>> milliseconds(0.0123456), milliseconds(0.000021)
        ('12.3 ms', '0.021 ms')
    """
    return f"{1000 * seconds:.3g} ms"


def error_in_words(error: float) -> str:
    """An error with five decimals; below 0.001, with three significant digits.

    Example:
        >>> error_in_words(0.0123456), error_in_words(1.23456e-9), error_in_words(0.0)
        ('0.01235', '1.23e-09', '0.00000')
    """
    return f"{error:.3g}" if 0 < error < 0.001 else f"{error:.5f}"


def number_of(number: int, what: str) -> str:
    """A number with a noun in the singular or plural; humanize cannot form plurals.

    Example:
        >>> number_of(1, "image"), number_of(1200, "class")
        ('1 image', '1,200 classes')
    """
    plural = ("es" if what.endswith("s") else "s") if number != 1 else ""
    return f"{number:,} {what}{plural}"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A hint at the known name that was probably meant, or nothing.

    Capitals, dashes and underscores do not count, and the beginning of a name is enough.

    Example:
        >>> did_you_mean("HalfUp", ["nearest", "half-up"])
        " Did you mean 'half-up'?"
        >>> did_you_mean("gram", ["adaround", "gram-adaround"]), did_you_mean("xyz", ["nearest"])
        (" Did you mean 'gram-adaround'?", '')
    """
    plain = {_plain(one): one for one in known}
    wanted = _plain(str(name))
    near = difflib.get_close_matches(wanted, plain, n=1)
    near = near or [one for one in plain if len(wanted) >= BEGINNING and one.startswith(wanted)]
    return f" Did you mean '{plain[near[0]]}'?" if near else ""


def no_such_name(module: str, known: Collection[str]) -> Callable[[str], NoReturn]:
    """The `__getattr__` of a module: its error names the name that was probably meant.

    Args:
        module: what users call the module, such as "rw.rounding".
        known: its public names.

    Example:
        >>> no_such_name("rw.rounding", ["GPTQ", "Nearest"])("GTPQ")
        Traceback (most recent call last):
        AttributeError: rw.rounding has no 'GTPQ'. Did you mean 'GPTQ'?
    """

    def refuse(name: str) -> NoReturn:
        raise AttributeError(f"{module} has no '{name}'.{did_you_mean(name, known)}", name=name)

    return refuse


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def printable(text: str) -> str:
    r"""A text without characters that a terminal obeys; each of them is shown as Python writes it.

    Example:
        >>> print(printable("red \x1b[31m"))
        red \x1b[31m
    """
    return CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_lines(text: str) -> str:
    r"""The same for a text of several lines: its line ends stay.

    Example:
        >>> print(printable_lines("red \x1b[31m\nand more"))
        red \x1b[31m
        and more
    """
    return "\n".join(map(printable, text.split("\n")))


MOST_PADDING = 100
"""Cells of a table are padded to at most 100 characters: one long name must not make all lines as long."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """The lines of a table, with an empty one at the end.

    Args:
        header, rows: the cells.
        left: the columns whose cells begin at the left; numbers end at the right.
    """
    widths = [min(MOST_PADDING, max(map(len, column))) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(padded).rstrip()

    return [line(header), "  ".join("─" * width for width in widths), *map(line, rows), ""]
