"""Methods by their names in tables: as plain data and back, and checks of what stands in their place.

A method of the user's own is in no table. Plain data says which it was (`{"custom": "Mine(strength=0.5)"}`), and what
is read from that keeps the words in its place, but cannot run.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, final

import torch

from roundwise.errors import RecipeError
from roundwise.graph.graph import Graph
from roundwise.methods.interfaces import (
    ActivationRanges,
    Correction,
    GraphRewrite,
    Problem,
    RangeEstimator,
    Rounding,
    RoundingSolver,
    Traits,
)
from roundwise.numerics.grid import Codebook, Granularity, Grid
from roundwise.statistics import Extremes, Nothing


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


@final
@dataclass(frozen=True)
class CustomRounding(RoundingSolver[Nothing]):
    """In a recipe that was read: the place of a solver that is in no table. It tells what was used, and cannot run."""

    text: str
    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        _refuse_custom("rounding", self.text)


@final
@dataclass(frozen=True)
class CustomRanges(RangeEstimator[Nothing]):
    """As `CustomRounding`, for range estimation."""

    text: str
    needs: ClassVar[type] = Nothing

    def estimate(
        self, weight: torch.Tensor, codebook: Codebook, granularity: Granularity, statistics: Nothing, layer: str
    ) -> Grid:
        _refuse_custom("ranges", self.text)


@final
@dataclass(frozen=True)
class CustomCorrection(Correction[Nothing]):
    """As `CustomRounding`, for corrections."""

    text: str
    needs: ClassVar[type] = Nothing

    def shift(self, weight: torch.Tensor, bias: torch.Tensor, statistics: Nothing) -> torch.Tensor:
        _refuse_custom("correction", self.text)

    def note(self, statistics: Nothing) -> str:
        _refuse_custom("correction", self.text)


@final
@dataclass(frozen=True)
class CustomRewrite(GraphRewrite):
    """As `CustomRounding`, for rewrites."""

    text: str

    def apply(self, graph: Graph) -> Graph:
        _refuse_custom("rewrites", self.text)


@final
@dataclass(frozen=True)
class CustomActivationRanges(ActivationRanges[Extremes]):
    """As `CustomRounding`, for ranges of activations."""

    text: str
    needs: ClassVar[type] = Extremes

    def limits(self, values: Extremes, codebook: Codebook) -> tuple[float, float]:
        _refuse_custom("activations", self.text)


def _refuse_custom(where: str, text: str) -> NoReturn:
    raise RecipeError(
        f"{where}: the recipe came from a file, which tells that {text} was used but cannot hold a method of one's "
        f"own. Put the method itself in its place, with dataclasses.replace(…, {where}=…)."
    )


# ------------------------------------------------------------------------------------------------ plain data


def method_to_dict(method: Any, table: Mapping[str, type], key: str = "method") -> dict[str, Any]:
    """Its name in the table under `key`, and its settings but for those that are None."""
    if isinstance(method, CustomRounding | CustomRanges | CustomCorrection | CustomRewrite | CustomActivationRanges):
        return {"custom": method.text}
    for name, kind in table.items():
        if type(method) is kind:
            settings = {f.name: getattr(method, f.name) for f in dataclasses.fields(kind)}
            return {key: name, **{name: value for name, value in settings.items() if value is not None}}
    return {"custom": repr(method)}


def method_from_dict(
    entry: Any, table: Mapping[str, type], where: str, *, key: str = "method", custom: type | None = None
) -> Any:
    """The inverse; `where` is how messages begin, `custom` what takes the place of a method of the user's own.

    Raises:
        RecipeError: a name or a setting is unknown, or one that has no default is missing.
    """
    if custom is not None and isinstance(entry, Mapping) and set(entry) == {"custom"}:
        return custom(str(entry["custom"]))
    if isinstance(entry, str):
        entry = {key: entry}
    if not isinstance(entry, Mapping) or key not in entry:
        raise RecipeError(f"{where}: expected a table with '{key}' as one of {', '.join(table)}; found {entry!r}.")
    settings = dict(entry)
    name = settings.pop(key)
    if not isinstance(name, str) or name not in table:
        raise RecipeError(f"{where}: {name!r} is not one of {', '.join(table)}.{_did_you_mean(name, table)}")
    fields = dataclasses.fields(table[name])
    settings = settings_from_dict(settings, {f.name for f in fields}, f"{where} '{name}'")
    for missing in (f.name for f in fields if _is_required(f) and f.name not in settings):
        raise RecipeError(f"{where} '{name}': '{missing}' is missing.")
    return table[name](**settings)


def settings_from_dict(data: Any, known: set[str], where: str) -> dict[str, Any]:
    """A copy of a table of settings; raise unless all of them are known."""
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: expected a table of settings; found {data!r}.")
    for name in data:
        if name not in known:
            names = f"Known: {', '.join(sorted(known))}." if known else "It has none."
            raise RecipeError(f"{where}: {name!r} is not a setting. {names}{_did_you_mean(name, known)}")
    return dict(data)


def _required(kind: Any) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind) if _is_required(f))


def _is_required(setting: dataclasses.Field[Any]) -> bool:
    return setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING


def _did_you_mean(name: object, known: Mapping[str, Any] | set[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
