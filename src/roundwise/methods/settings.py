"""Checks of a method's settings, for its `__post_init__`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from roundwise.errors import RecipeError

LARGEST = 10**12
"""No setting of a method is a larger number, above or below 0."""


def check_types(settings: object) -> None:
    """For a method's `__post_init__`: raise unless every field has a value of its declared type.

    An int may stand for a float; a bool is no number. Numbers are at most `LARGEST`, either way: settings are
    multiplied by others and with float32 tensors, where more would end in infinity or an overflow.

    Raises:
        RecipeError: names the method, the setting, and what was found and expected.
    """
    kinds = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]  # a dataclass has no type of its own
        value = getattr(settings, field.name)
        if not _is_a(value, kinds[field.name]):
            wanted = _WORDS.get(kinds[field.name], f"a value of type {field.type}")
            if typing.get_origin(kinds[field.name]) is typing.Literal:
                wanted = f"one of {', '.join(map(repr, typing.get_args(kinds[field.name])))}"
            if isinstance(value, int | float) and abs(value) > LARGEST and _is_a(0, kinds[field.name]):
                number = _WORDS[float if _is_a(0.5, kinds[field.name]) else int]
                wanted = f"{number} of at most {LARGEST:.0e}, above or below 0"
            raise RecipeError(f"{type(settings).__name__}: {field.name}={value!r}, but it must be {wanted}.")


def check_rules(settings: object, rules: Mapping[str, bool]) -> None:
    """For a method's `__post_init__`: raise unless every rule, in words, holds.

    Raises:
        RecipeError: the method with its settings, and the first rule that they break.
    """
    for rule, holds in rules.items():
        if not holds:
            raise RecipeError(f"{settings}: {rule}.")


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    bool | None: "True, False or None",
    str: "text",
}


def _is_a(value: object, kind: Any) -> bool:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return any(_is_a(value, option) for option in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind is int:
        return type(value) is int and abs(value) <= LARGEST
    if kind is float:
        return type(value) in (int, float) and abs(value) <= LARGEST  # type: ignore[arg-type]  # it is one of the two
    return isinstance(value, typing.get_origin(kind) or kind)
