"""Checks of settings that are objects of a kind, or whole numbers."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import Traits


def check_choice(what: str, value: object, kind: Any, table: Mapping[str, type]) -> None:
    """Raise unless `value` is an object of the asked kind, and say what to write for what was probably meant."""
    if isinstance(value, kind):
        _check_declared(what, value, kind)
        return
    choices = {name: f"{choice.__name__}({required_settings(choice)})" for name, choice in table.items()}
    meant = next((text for name, text in choices.items() if value is table[name] or repr(value) == repr(name)), None)
    hint = f" Write {what}={meant}." if meant else ""
    raise RecipeError(f"{what} is {value!r}; it must be an object such as {', '.join(choices.values())}.{hint}")


def _check_declared(what: str, value: object, kind: Any) -> None:
    """Raise unless a method, which may be a user's own, declares what its interface asks for."""
    declared = typing.get_type_hints(kind) if isinstance(kind, type) else {}
    if "needs" in declared:
        (of_class,) = typing.get_args(declared["needs"])  # ClassVar[type[Statistic]]
        (base,) = typing.get_args(of_class)
        needs = getattr(value, "needs", None)
        if not (isinstance(needs, type) and issubclass(needs, base)):
            raise RecipeError(
                f"{what}: the class {type(value).__name__} has needs={needs!r}; it must name the statistic that the "
                f"method works from, a subclass of {base.__name__}. Write it into the class, such as `needs: "
                "ClassVar[type] = Nothing`; roundwise.statistics has them."
            )
    if hasattr(kind, "traits") and not isinstance(value.traits, Traits):  # type: ignore[attr-defined]  # as kind
        raise RecipeError(
            f"{what}: the class {type(value).__name__} has traits={value.traits!r}; "  # type: ignore[attr-defined]
            "it must be an object of Traits. Write for instance `traits: ClassVar[Traits] = Traits()`."
        )


def check_whole_number(what: str, value: object, at_least: int | None = None) -> None:
    """Raise a `RecipeError` unless the value is an int, and not a bool, of at least so much."""
    if type(value) is not int or (at_least is not None and value < at_least):
        limit = "" if at_least is None else f", {at_least} or more"
        raise RecipeError(f"{what}={value!r}: it must be a whole number (an int){limit}.")


def is_required(setting: dataclasses.Field[Any]) -> bool:
    """Whether a setting has no default."""
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def required_settings(kind: Any) -> str:
    """The settings that have no default, as they stand in an example of a call."""
    return ", ".join(f.name for f in dataclasses.fields(kind) if is_required(f))
