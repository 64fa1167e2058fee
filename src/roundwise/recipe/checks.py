"""Checks of settings that are objects of a kind, or whole numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from roundwise.errors import RecipeError


def check_choice(what: str, value: object, kind: Any, table: Mapping[str, type]) -> None:
    """Raise unless `value` is an object of the asked kind, and say what to write for what was probably meant."""
    if isinstance(value, kind):
        return
    choices = {name: f"{choice.__name__}({_required(choice)})" for name, choice in table.items()}
    meant = next((text for name, text in choices.items() if value is table[name] or repr(value) == repr(name)), None)
    hint = f" Write {what}={meant}." if meant else ""
    raise RecipeError(f"{what} is {value!r}; it must be an object such as {', '.join(choices.values())}.{hint}")


def check_whole_number(what: str, value: object, at_least: int | None = None) -> None:
    """Raise a `RecipeError` unless the value is an int, and not a bool, of at least so much."""
    if type(value) is not int or (at_least is not None and value < at_least):
        limit = "" if at_least is None else f", {at_least} or more"
        raise RecipeError(f"{what}={value!r}: it must be a whole number (an int){limit}.")


def is_required(setting: dataclasses.Field[Any]) -> bool:
    """Whether a setting has no default."""
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def _required(kind: Any) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind) if is_required(f))
