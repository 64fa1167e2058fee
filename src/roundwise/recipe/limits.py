"""How large plain data for a recipe may be, so that reading it ends soon and always with an error that says what to do.

A recipe of every layer of a large network, with an override for each, has some 100 KiB and a depth of 6.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roundwise.errors import RecipeError

MOST_BYTES = 4 << 20
"""Larger texts are refused."""

MOST_DEPTH = 32
"""Tables and lists that are nested deeper are refused."""

LARGEST_NUMBER = 2**63
"""Whole numbers beyond this are refused: TOML has 64 bits, and Python does not print numbers of many digits."""


_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DEEP_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PART}[ \t]*\.[ \t]*){{{MOST_DEPTH}}}")
"""A key, or a table's name, with more than `MOST_DEPTH` parts: `a.b.c`."""


def read_text(path: Path) -> str:
    """The text of a recipe's file.

    Raises:
        RecipeError: it is too large, or cannot be read.
        UnicodeDecodeError: it is not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"cannot read the recipe {str(path)!r}: {reason}. Check the path.") from error
    if len(content) > MOST_BYTES:
        raise RecipeError(
            f"{path} has more than {MOST_BYTES:,} bytes, too much for a recipe. Give a file such as "
            "Recipe().to_toml(path) writes."
        )
    return content.decode("utf-8-sig")  # some editors begin UTF-8 files with a byte-order mark, which is not TOML


def parse_toml(text: str) -> dict[str, Any]:
    """The data in the text of a TOML file.

    Raises:
        RecipeError: it is nested too deep, or a number has too many digits.
        tomllib.TOMLDecodeError: it is not TOML.
    """
    if _DEEP_KEY.search(text):  # the parser would take time and memory with the square of a key's length
        raise _too_deep()
    try:
        data = tomllib.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python's own limit of digits
        raise RecipeError(f"a number in it has too many digits ({error}). Give a number below 2**63.") from error
    check_size(data)
    return data


def check_size(data: object) -> None:
    """Make sure that plain data is not nested too deep and has no number that is too large.

    Raises:
        RecipeError: it is, or has.
    """
    waiting = [(data, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise _too_deep()
        if isinstance(value, Mapping):
            waiting += [(it, depth + 1) for it in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(it, depth + 1) for it in value]
        elif isinstance(value, int) and abs(value) >= LARGEST_NUMBER:
            raise RecipeError(
                f"a whole number of {value.bit_length()} bits is in the recipe. Give a number below 2**63."
            )


def _too_deep() -> RecipeError:
    return RecipeError(
        f"tables or lists are nested more than {MOST_DEPTH} deep, and a recipe needs 6. Start from the file that "
        "Recipe().to_toml(path) writes."
    )
