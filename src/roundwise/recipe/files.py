"""Settings as plain data (dicts, lists, text, numbers), as TOML and JSON hold them, and back.

A dataclass is a table of its fields, without those that are None. A method also has its name in its table of methods:
`{"method": "gptq", "ridge": 0.01}`; so do granularities (under "kind") and stages (under "stage").

A method of the user's own is in no table. Plain data says which it was (`{"custom": "Mine(strength=0.5)"}`), and what
is read from that keeps its place and refuses to run.

This is written by hand, where reports use cattrs: a recipe is written by people, and cattrs would convert their
mistakes (bits = "4" would become 4) and name Python classes in its errors instead of lines of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from roundwise.errors import RecipeError
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.methods.compressing import CompressionMethod, RatioChoice
from roundwise.methods.compression import COMPRESSION_METHODS, RATIO_CHOICES
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.interfaces import (
    ActivationRanges,
    Correction,
    GraphRewrite,
    LearnedQuantization,
    RangeEstimator,
    RoundingSolver,
    Traits,
)
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.methods.training import LEARNED_QUANTIZATIONS
from roundwise.numerics.grid import Granularity
from roundwise.recipe.checks import is_required, required_settings
from roundwise.recipe.settings import FLOAT, GRANULARITIES, Activations, Override, Overrides, Weights
from roundwise.recipe.stages import STAGES, Stage
from roundwise.statistics import Extremes, Nothing
from roundwise.wording import did_you_mean


class _Choice(NamedTuple):
    """Objects that go by a name in a table.

    Attributes:
        table: from names to classes.
        key: where plain data has the name.
        interface: of methods, which a user may have written; None for what is only in the table.
        setting: where such a method stands in a recipe, as the example in an error message.
    """

    table: Mapping[str, type]
    key: str
    interface: Any = None
    setting: str = ""


_INTERFACES: dict[Any, _Choice] = {
    RoundingSolver: _Choice(ROUNDING_SOLVERS, "method", RoundingSolver, "Quantize, rounding=…"),
    RangeEstimator: _Choice(RANGE_ESTIMATORS, "method", RangeEstimator, "Quantize, weights=Weights(ranges=…)"),
    Correction: _Choice(CORRECTIONS, "method", Correction, "Quantize, correction=…"),
    ActivationRanges: _Choice(
        ACTIVATION_RANGES, "method", ActivationRanges, "Quantize, activations=Activations(ranges=…)"
    ),
    LearnedQuantization: _Choice(LEARNED_QUANTIZATIONS, "method", LearnedQuantization, "Finetune, quantization=…"),
    GraphRewrite: _Choice(REWRITES, "method", GraphRewrite, "Rewrite, methods=(…,)"),
    CompressionMethod: _Choice(COMPRESSION_METHODS, "method", CompressionMethod, "Compress, methods=(…,)"),
    RatioChoice: _Choice(RATIO_CHOICES, "method", RatioChoice, "Compress, choice=…"),
}
_PLACES_OF_SETTINGS: dict[Any, str] = {
    Weights: "Quantize, weights=…",
    Activations: "Quantize, activations=…",
    Granularity: "Quantize, weights=Weights(granularity=…)",
}
"""Where settings stand in a recipe that are no methods, as the example in an error message."""

_CHOICES: dict[Any, _Choice] = {
    **_INTERFACES,
    Granularity: _Choice(GRANULARITIES, "kind"),
    Stage: _Choice(STAGES, "stage"),
}


# ------------------------------------------------------------------------------------------------ objects to plain data


def to_plain(value: Any) -> Any:
    """Plain data for a recipe or a part of one."""
    if isinstance(value, Overrides):
        return {name: to_plain(override) for name, override in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        if isinstance(value, tuple(_INTERFACES)):  # of the user's own, and no dataclass
            return {"custom": repr(value)}
        return value
    if type(value) in _placeholders():
        return {"custom": value.text}  # type: ignore[union-attr]
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    plain = {name: to_plain(item) for name, item in fields.items() if item is not None}
    for choice in _CHOICES.values():
        for name, kind in choice.table.items():
            if type(value) is kind:
                return {choice.key: name, **plain}
    return {"custom": repr(value)} if isinstance(value, tuple(_INTERFACES)) else plain


def methods_of_ones_own(value: Any) -> Iterator[object]:
    """All methods in a recipe that are in no table."""
    if isinstance(value, tuple(_INTERFACES)):
        if not any(type(value) in choice.table.values() for choice in _INTERFACES.values()):
            yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from methods_of_ones_own(item)
    elif dataclasses.is_dataclass(value):
        for setting in dataclasses.fields(value):
            yield from methods_of_ones_own(getattr(value, setting.name))


# ------------------------------------------------------------------------------------------------ plain data to objects

_UNQUOTED: dict[Any, str] = {
    bool: "true or false, written without quotes",
    int: "a whole number, written without quotes",
    float: "a number, written without quotes",
}
"""What is not text in a file."""


def from_plain(data: Any, kind: Any, where: str) -> Any:
    """The inverse of `to_plain`; anything left out takes its default.

    Args:
        data: plain data.
        kind: the type of the object that is wanted, as it stands in annotations.
        where: how messages begin.

    Raises:
        RecipeError: a name or a setting is unknown, or one that has no default is missing.
    """
    if typing.get_origin(kind) in (types.UnionType, typing.Union) and kind not in _CHOICES:
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        if data == "none" and type(None) in typing.get_args(kind):
            raise RecipeError(f"{where}: found 'none', but a file has no word for None. Leave the line out.")
        return from_plain(data, options[0], where) if len(options) == 1 else data
    if (choice := _choice_of(kind)) is not None:
        return _chosen(data, choice, where)
    if typing.get_origin(kind) is Sequence:
        if not isinstance(data, list | tuple):
            raise RecipeError(
                f"{where}: found {data!r}; it must be a list of tables, one for each item.{_example(kind, data)}"
            )
        (item,) = typing.get_args(kind)
        return tuple(from_plain(entry, item, f"{where}[{number}]") for number, entry in enumerate(data))
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _object(data, kind, where)
    if isinstance(data, str) and kind in _UNQUOTED:
        raise RecipeError(f"{where}: found the text {data!r}, but it must be {_UNQUOTED[kind]}.")
    return data  # settings check their own types, in words


def _object(data: Any, kind: Any, where: str) -> Any:
    """An object of a dataclass from a table of its settings."""
    names = [setting.name for setting in dataclasses.fields(kind)]
    _check_place(data, kind, where)
    settings = settings_from_dict(data, names, where, kind)
    for missing in (f.name for f in dataclasses.fields(kind) if is_required(f) and f.name not in settings):
        raise RecipeError(f"{where}: the setting '{missing}' is missing. It has no default: give it.")
    hints = typing.get_type_hints(kind)
    overrides = settings.pop("overrides", None)
    made = {name: from_plain(value, hints[name], f"{where}: {name}") for name, value in settings.items()}
    if overrides is not None:
        bases = (made.get("weights", Weights()), made.get("activations") or Activations())
        made["overrides"] = _overrides(overrides, f"{where}: overrides", *bases)
    with _naming(where):
        return kind(**made)


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """Begin the message of an error with the place in the recipe that caused it."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_place(data: Any, kind: Any, where: str) -> None:
    """Raise if a recipe has a setting beside its stages that belongs into a stage."""
    names = {setting.name for setting in dataclasses.fields(kind)}
    if "stages" not in names or not isinstance(data, Mapping):
        return
    for name in data.keys() - names:
        word = next((word for word, one in STAGES.items() if name in {f.name for f in dataclasses.fields(one)}), None)
        if word is not None:
            line = f"[stages.{name}]" if isinstance(data[name], Mapping) else f"{name} = …"
            raise RecipeError(
                f"{where}: '{name}' is a setting of a stage, and not of the recipe. Write {line} below [[stages]] and "
                f'stage = "{word}".'
            )


def _place_in(kind: Any, data: Mapping[str, Any], name: str) -> str:
    """Where a setting belongs that stands beside the table that it is for, as `iterations` beside `rounding`; or "".

    Args:
        kind: the dataclass whose settings the data are.
        data: with a setting that `kind` does not have.
        name: of this setting.
    """
    value = json.dumps(data[name]) if isinstance(data[name], bool | int | float | str) else "…"
    lines = []
    for setting in dataclasses.fields(kind):
        for inner, named in _inner_kinds(kind, setting, data.get(setting.name)):
            if name in {field.name for field in dataclasses.fields(inner)}:
                lines.append(f"{setting.name} = {{ {named}{name} = {value} }}")
    return f" It belongs into another table: write {' or '.join(lines)}." if lines else ""


def _inner_kinds(kind: Any, setting: dataclasses.Field[Any], found: Any) -> Iterator[tuple[Any, str]]:
    """The dataclasses whose tables a setting takes; and how such a table begins, as `method = "gptq", `.

    Of methods it is the one that the data name, or else the default.
    """
    hint = typing.get_type_hints(kind)[setting.name]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union) and hint not in _CHOICES
    for option in typing.get_args(hint) if is_union else (hint,):
        choice = _choice_of(option)
        if choice is None:
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                yield option, ""
            continue
        word = found.get(choice.key) if isinstance(found, Mapping) else found
        for name, one in choice.table.items():
            if name == word or (word is None and type(setting.default) is one):
                yield one, f'{choice.key} = "{name}", '


def _chosen(data: Any, choice: _Choice, where: str) -> Any:
    """An object by its name in a table, with its settings."""
    if choice.interface is not None and isinstance(data, Mapping) and set(data) == {"custom"}:
        return _placeholder(choice.interface)(str(data["custom"]))
    if isinstance(data, str):
        data = {choice.key: data}
    if not isinstance(data, Mapping) or choice.key not in data:
        raise RecipeError(
            f"{where}: found {data!r}; it must be a table whose '{choice.key}' is one of {', '.join(choice.table)}."
        )
    settings = dict(data)
    name = settings.pop(choice.key)
    if not isinstance(name, str) or name not in choice.table:
        hint = did_you_mean(name, choice.table)
        raise RecipeError(f"{where}: there is no {choice.key} {name!r}. Choose one of {', '.join(choice.table)}.{hint}")
    return _object(settings, choice.table[name], f"{where} '{name}'")


def _overrides(data: Any, place: str, weights: Weights, activations: Activations) -> Overrides:
    """Exceptions, each with what is the same everywhere filled in; a layer's own solver is not passed on."""
    if not isinstance(data, Mapping):
        raise RecipeError(
            f"{place}: found {data!r}; it must be a table from names of layers or tensors to what is different for "
            'them, such as [stages.overrides.classifier] with weights = "float".'
        )
    bases: dict[str, Any] = {"weights": dataclasses.replace(weights, rounding=None), "activations": activations}
    made = {}
    for name, entry in data.items():
        where = f"{place} '{name}'"
        if full_name := _split_by_dots(name, entry):
            raise RecipeError(
                f"{place}: '{name}' is a table of further tables, because TOML splits a name without quotes at its "
                f'dots. Write the name of the layer in quotes: [stages.overrides."{full_name}".weights].'
            )
        parts = settings_from_dict(entry, list(bases), where, Override)
        for part, value in parts.items():
            if value != FLOAT:
                kind = type(bases[part])
                hints = typing.get_type_hints(kind)
                known = settings_from_dict(value, list(hints), f"{where}: {part}", kind)
                changes = {key: from_plain(it, hints[key], f"{where}: {part}: {key}") for key, it in known.items()}
                with _naming(f"{where}: {part}"):
                    parts[part] = dataclasses.replace(bases[part], **changes)
        with _naming(where):
            made[name] = Override(**parts)
    return Overrides(made)


def _split_by_dots(name: str, entry: Any) -> str | None:
    """The name that was meant where TOML made tables in tables of it, as of `[overrides.features.0.weights]`."""
    inner = [key for key, value in entry.items() if isinstance(value, Mapping)] if isinstance(entry, Mapping) else []
    if not inner or inner[0] in ("weights", "activations"):
        return None
    inner_name = f"{name}.{inner[0]}"
    return _split_by_dots(inner_name, entry[inner[0]]) or inner_name


def settings_from_dict(data: Any, known: Sequence[str], where: str, kind: Any = None) -> dict[str, Any]:
    """A copy of a table of settings; raise unless all of them are known.

    Args:
        data: the table.
        known: names of settings.
        where: how messages begin.
        kind: the dataclass that has these settings, if one has: then a setting of a table inside this one is named.
    """
    if not isinstance(data, Mapping):
        hint = " Double brackets make a list of tables: write single ones." if _is_tables(data) else ""
        raise RecipeError(
            f"{where}: found {data!r}; it must be a table of settings ({', '.join(sorted(known))}).{hint}"
        )
    for name in data:
        if name not in known:
            hint = "" if kind is None else _place_in(kind, data, name)
            if len(known) > 1:
                hint = f"Choose one of {', '.join(sorted(known))}.{hint or did_you_mean(name, known)}"
            elif known:
                hint = f"The only setting is '{known[0]}': write this name, or remove the setting.{hint}"
            else:
                hint = f"It has no settings: remove this one.{hint}"
            raise RecipeError(f"{where}: there is no setting {name!r}. {hint}")
    return dict(data)


def _is_tables(data: Any) -> bool:
    """Whether this is a list of tables, as `[[stages.weights]]` makes it."""
    return isinstance(data, list | tuple) and len(data) > 0 and all(isinstance(item, Mapping) for item in data)


def stage_with(value: object) -> str:
    """A hint for an object, or a class, that is given in place of a stage and belongs into one; otherwise "".

    Example:
        >>> stage_with(Weights)
        ' Write Quantize(weights=Weights()).'
        >>> stage_with("adaround")
        ''
    """
    is_class = isinstance(value, type)
    found: type = value if isinstance(value, type) else type(value)
    required = required_settings(found) if dataclasses.is_dataclass(found) else ""
    text = f"{found.__name__}({required})" if is_class else repr(value)
    if issubclass(found, Stage):
        return f" Write {text}."
    places = {kind: choice.setting for kind, choice in _INTERFACES.items()} | _PLACES_OF_SETTINGS
    for kind, setting in places.items():
        if issubclass(found, kind):
            stage, _, argument = setting.partition(", ")
            budget = "macs=0.5, " if stage == "Compress" else ""
            return f" Write {stage}({budget}{argument.replace('…', text)})."
    return ""


def name_of(method: object, table: Mapping[str, type]) -> str:
    """A method's name in its table; the name of its class where it is in none."""
    return next((name for name, kind in table.items() if type(method) is kind), type(method).__name__)


def _example(kind: Any, data: Any) -> str:
    """What to write where a list of tables is wanted, or nothing where an example would say nothing."""
    (item,) = typing.get_args(kind)
    choice = _choice_of(item)
    if choice is None:
        return ""
    found = data.get(choice.key) if isinstance(data, Mapping) else data
    name = found if isinstance(found, str) and found in choice.table else next(iter(choice.table))
    if item == Stage:
        return f' Write [[stages]], in double brackets, before each stage, and below it its name: stage = "{name}".'
    return f' Write for instance [{{ {choice.key} = "{name}" }}].'


def _choice_of(kind: Any) -> _Choice | None:
    return _CHOICES.get(typing.get_origin(kind) if typing.get_origin(kind) in _INTERFACES else kind)


# ------------------------------------------------------------------------------------------------ methods of one's own


@functools.cache
def _placeholder(interface: Any) -> Any:
    """The class of objects that stand, in a recipe that was read, in the place of a method that is in no table."""

    def refuse(self: Any, *_: Any, **__: Any) -> NoReturn:
        raise RecipeError(
            f"the recipe came from a file, which says that {self.text} was used, but a file cannot hold a method of "
            f"your own. Put the method itself in its place: recipe.with_settings({_INTERFACES[interface].setting})."
        )

    body: dict[str, Any] = dict.fromkeys(interface.__abstractmethods__, refuse)
    body |= {"exact": True, "measures_moments": False, "traits": Traits()}  # what interfaces declare
    body |= {"__annotations__": {"text": str}, "needs": Extremes if interface is ActivationRanges else Nothing}
    body |= {"__doc__": f"The place of a {interface.__name__} that is in no table. It tells its text and cannot run."}
    kind: Callable[..., Any] = types.new_class(
        f"Custom{interface.__name__}", (interface,), {}, lambda n: n.update(body)
    )
    return dataclass(frozen=True)(kind)  # type: ignore[arg-type]


def _placeholders() -> tuple[Any, ...]:
    return tuple(_placeholder(interface) for interface in _INTERFACES)
