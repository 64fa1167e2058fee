"""The text in a `.rw` file that describes the network: from JSON to plain data, within limits.

Plain data take up to thirty times as much memory as their text, so the text may not be long. Names in it are printed,
in reports and errors, so they hold no characters that a terminal obeys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from roundwise.errors import FileFormatError
from roundwise.wording import CONTROL_CHARACTERS, human_bytes

LONGEST = 8 << 20
"""Bytes of the text. A network of 1,000 operations needs 0.4 MiB; reading 8 MiB takes up to 300 MiB of memory."""

DEEPEST = 48
"""How deep lists and tables may be nested. Deeper ones would end Python's stack; networks use ten levels."""

_ENTRIES = frozenset({"graph", "packed", "recipe", "report", "versions"})


def to_text(description: Mapping[str, Any]) -> str:
    """The text of a description.

    Raises:
        FileFormatError: it could not be read again.
    """
    check_plain(description)
    text = json.dumps(description, allow_nan=False)
    _check_length(len(text))
    return text


def from_text(text: str) -> dict[str, Any]:
    """The description in a text.

    Raises:
        FileFormatError: it is not JSON, too long or nested too deep, or holds a number or character that no file has.
    """
    _check_length(len(text))
    try:
        description = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(
            f"its description is not JSON that can be read: {type(error).__name__}: {error}."
        ) from error
    check_plain(description)
    if not isinstance(description, dict) or description.keys() != _ENTRIES:
        found = ", ".join(map(repr, description)) if isinstance(description, dict) else type(description).__name__
        raise FileFormatError(f"its description has the entries {found}; it must have {', '.join(sorted(_ENTRIES))}.")
    return description


def check_plain(data: Any) -> None:
    """Raise unless plain data may stand in a description.

    Raises:
        FileFormatError: it is nested too deep, a number needs more than 64 bits, or a text holds control characters.
    """
    # Iterators, because a list of all values that are still to be checked takes as much memory as the values.
    inside: list[Iterator[Any]] = [iter((data,))]
    while inside:
        value = next(inside[-1], inside)  # the list itself stands for the end
        if value is inside:
            inside.pop()
            continue
        if len(inside) - 1 > DEEPEST:
            raise FileFormatError(f"its description is nested deeper than {DEEPEST} levels, which no network needs.")
        if isinstance(value, str):
            _check_characters(value)
        elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise FileFormatError(
                f"its description has a whole number of {value.bit_length()} bits; at most 64 will do."
            )
        elif isinstance(value, dict):
            for key in value:
                if isinstance(key, str):
                    _check_characters(key)
            inside.append(iter(value.values()))
        elif isinstance(value, list | tuple):
            inside.append(iter(value))


def _check_characters(text: str) -> None:
    if CONTROL_CHARACTERS.search(text):
        raise FileFormatError(
            f"its description has the text {text[:100]!a}, with a control character, which could be shown on a "
            "terminal as something else. Rename that part of the network, and quantize it again."
        )


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise FileFormatError(
            f"the description of the network takes {human_bytes(length)}; at most {human_bytes(LONGEST)} are read, "
            "because plain data take many times as much memory as their text. Split the network."
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"'{name}' is not a number")
