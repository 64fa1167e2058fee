"""Sizes, durations and counts in a form that people can read, and names in a form that a terminal can show."""

from __future__ import annotations

import re

import humanize

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


def printable(text: str) -> str:
    r"""A text without characters that a terminal obeys; each of them is shown as Python writes it.

    Example:
        >>> print(printable("red \x1b[31m"))
        red \x1b[31m
    """
    return CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], text)
