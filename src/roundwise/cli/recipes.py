"""From options to a recipe. What the options do not say comes from the recipe file, and else from the defaults.

Methods and their settings are read from the tables of methods: a new method needs no line here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

from roundwise.errors import RecipeError
from roundwise.methods.activations import ACTIVATION_RANGES, ActivationBatchNorm
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.numerics.grid import Granularity, PerGroup
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import FLOAT, GRANULARITIES, Activations, Override, Overrides, Weights
from roundwise.recipe.stages import Quantize, Rewrite

M = TypeVar("M")

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@final
@dataclass(frozen=True)
class RecipeOptions:
    """The options that shape a recipe; None, or empty, where the user gave none.

    Attributes:
        file: a recipe in TOML.
        data_free: whether the recipe, where no file gives one, is the one that needs no data; and ranges likewise.
        bits, granularity, seed, batch_size, memory_budget: as in the recipe.
        asymmetric: as in the recipe, the other way round.
        ranges, rounding: names in the tables.
        activations: bits of activations; 0 leaves them in float, whatever the recipe file says.
        activation_ranges: name in the table.
        correction: name in the table, or "none".
        rewrites: names in the table, in order; "none" leaves out those of the recipe file.
        settings: `NAME=VALUE` for the rounding method, `ranges.NAME=VALUE` for range estimation,
            `activations.NAME=VALUE` for activations and `activations.ranges.NAME=VALUE` for their ranges,
            `rewrites.REWRITE.NAME=VALUE` for a rewrite.
        overrides: `LAYER=BITS`, `LAYER=BITS,GRANULARITY` or `LAYER=float`.
    """

    file: Path | None = None
    data_free: bool = False
    bits: int | None = None
    granularity: Granularity | None = None
    asymmetric: bool = False
    ranges: str | None = None
    rounding: str | None = None
    activations: int | None = None
    activation_ranges: str | None = None
    correction: str | None = None
    rewrites: Sequence[str] = ()
    settings: Sequence[str] = ()
    overrides: Sequence[str] = ()
    seed: int | None = None
    batch_size: int | None = None
    memory_budget: int | None = None


def build_recipe(options: RecipeOptions) -> Recipe:
    """Put the options over the recipe file, or over the default recipe.

    Raises:
        RecipeError: an option or a line of the file makes no sense; what is known is listed.
    """
    if options.file is not None:
        base = Recipe.from_toml(options.file)
    else:
        base = Recipe.data_free() if options.data_free else Recipe()
    stage, rewrite = base.stage(Quantize), base.stage(Rewrite)
    rounding = _method(stage.rounding, options.rounding, ROUNDING_SOLVERS)
    ranges = _method(stage.weights.ranges, options.ranges, RANGE_ESTIMATORS)
    activations = _activations(stage.activations, options)
    rewrites = _rewrites(rewrite.methods, options.rewrites)
    for prefix, settings in _by_target(options.settings).items():
        setting = settings[0].written
        if prefix == "ranges":
            ranges = with_settings(ranges, settings, RANGE_ESTIMATORS)
        elif prefix == "rounding":
            rounding = with_settings(rounding, settings, ROUNDING_SOLVERS)
        elif prefix in ("activations", "activations.ranges"):
            if activations is None:
                raise RecipeError(f"--set {setting}: activations stay in float; give --activations 8 to quantize them.")
            if prefix == "activations":
                if options.activations is not None and (bits := [it for it in settings if it.name == "bits"]):
                    raise RecipeError(
                        f"--set {bits[0].written}: --activations {options.activations} says the bits already."
                    )
                activations = with_settings(activations, settings, {"activations": Activations})
            else:
                chosen = with_settings(activations.ranges, settings, ACTIVATION_RANGES)
                activations = dataclasses.replace(activations, ranges=chosen)
        elif prefix.startswith("rewrites."):
            if rewrites is None:  # those that the weights ask for
                granular = dataclasses.replace(stage.weights, **_given(granularity=options.granularity))
                rewrites = list(rewrite.methods_before(dataclasses.replace(stage, weights=granular)))
            rewrites = _with_rewrite_settings(rewrites, prefix.removeprefix("rewrites."), settings)
        else:
            known = "'rounding', 'ranges', 'activations', 'activations.ranges' or 'rewrites.REWRITE'"
            raise RecipeError(f"--set {setting}: '{prefix}' is none of {known}.")
    weights = dataclasses.replace(
        stage.weights, ranges=ranges, **_given(bits=options.bits, granularity=options.granularity)
    )
    if options.asymmetric:
        weights = dataclasses.replace(weights, symmetric=False)
    recipe = base.with_settings(Rewrite, methods=rewrites).with_settings(
        Quantize,
        weights=weights,
        rounding=rounding,
        activations=activations,
        correction=_optional(stage.correction, options.correction, CORRECTIONS),
        overrides=_overrides(stage.exceptions, options.overrides, weights),
    )
    return dataclasses.replace(
        recipe,
        **_given(seed=options.seed, batch_size=options.batch_size, memory_budget=options.memory_budget),
    )


class Setting(NamedTuple):
    """One of a method's settings, its new value as text, and both as the user wrote them, for messages."""

    name: str
    text: str
    written: str


def _by_target(settings: Sequence[str]) -> dict[str, list[Setting]]:
    """What is to be set, by whose it is: some settings make sense only together."""
    targets: dict[str, list[Setting]] = {}
    for written in settings:
        name, text = _pair(written, "--set", "iterations=2000")
        prefix, _, rest = name.rpartition(".")
        targets.setdefault(prefix or "rounding", []).append(Setting(rest, text, written))
    return targets


def with_settings(method: M, settings: Sequence[Setting], table: Mapping[str, type]) -> M:
    """A method with some of its settings replaced, together, by texts that are read as the type of each.

    Args:
        method: as it is so far.
        settings: of one name the last counts.
        table: where the method's own name is.

    Raises:
        RecipeError: the method has no such setting, the text is no value for it, or they do not go together.
    """
    kind = type(method)
    called = next((key for key, value in table.items() if value is kind), kind.__name__)
    known = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
    values = {}
    for name, text, written in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            what = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise RecipeError(f"--set {written}: '{called}' has no setting '{name}'; {what}.{hint}")
        try:
            values[name] = parse_value(text, typing.get_type_hints(kind)[name])
        except ValueError as error:
            raise RecipeError(f"--set {written}: {error}") from error
    replaced: M = dataclasses.replace(method, **values)  # type: ignore[type-var]
    return replaced


def parse_value(text: str, wanted: Any) -> Any:
    """Read a value of a type: int, float, bool, str, one of several literals, or None where the type allows it.

    Raises:
        ValueError: the text is no such value; the message says what is expected.

    Example:
        >>> parse_value("2e3", float), parse_value("no", bool), parse_value("none", int | None)
        (2000.0, False, None)
    """
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        kinds = typing.get_args(wanted)
        if type(None) in kinds and text.lower() == "none":
            return None
        for kind in kinds:
            if kind is not type(None):
                try:
                    return parse_value(text, kind)
                except ValueError:
                    continue
        raise ValueError(f"'{text}' is not one of {wanted}.")
    if typing.get_origin(wanted) is typing.Literal:
        for literal in typing.get_args(wanted):
            if text == str(literal):
                return literal
        raise ValueError(f"'{text}' is not one of {', '.join(map(str, typing.get_args(wanted)))}.")
    if wanted is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise ValueError(f"'{text}' is neither true nor false.")
        return words[text.lower()]
    if wanted is int:
        if not re.fullmatch(r"[+-]?[0-9][0-9_]*", text):
            raise ValueError(f"'{text}' is not a whole number.")
        return int(text)
    if wanted is float:
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"'{text}' is not a number.") from None
    if wanted is str:
        return text
    raise ValueError(f"a setting of type {wanted} cannot be given here; write it into a recipe file (--recipe).")


def parse_bytes(text: str) -> int:
    """Read an amount of memory.

    Raises:
        ValueError: it is not a number with a known unit.

    Example:
        >>> parse_bytes("1.5GiB"), parse_bytes("200 MB"), parse_bytes("0")
        (1610612736, 200000000, 0)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match.group(2) not in _UNITS:
        raise ValueError(f"'{text}' is not an amount of memory; write 2GiB, 500MB, or a number of bytes.")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def describe_methods(table: Mapping[str, type]) -> list[tuple[str, str]]:
    """Each method's name with the first line of its documentation, and its settings with their defaults."""
    rows = []
    for name, kind in table.items():
        summary = (kind.__doc__ or "").strip().partition("\n")[0]
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        settings = ", ".join(f"{f.name}={f.default}" for f in fields if f.default is not dataclasses.MISSING)
        rows.append((name, f"{summary} Settings: {settings}." if settings else summary))
    return rows


def describe(method: object, table: Mapping[str, type]) -> str:
    """A method's name in its table, and those of its settings that are not the method's own defaults."""
    name = next(name for name, kind in table.items() if kind is type(method))
    fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    changed = [f"{f.name}={getattr(method, f.name)}" for f in fields if getattr(method, f.name) != f.default]
    return ", ".join([name, *changed])


def _method(base: M, name: str | None, table: Mapping[str, type]) -> M:
    # Naming the method that is in place already keeps its settings.
    if name is None or table[name] is type(base):
        return base
    chosen: M = table[name]()
    return chosen


def _optional(base: M | None, name: str | None, table: Mapping[str, type]) -> M | None:
    """As `_method`, for what may be left out: the word for that is "none"."""
    if name == "none":
        return None
    if base is None and name is not None:
        chosen: M = table[name]()
        return chosen
    return base if base is None else _method(base, name, table)


def _rewrites(base: Sequence[GraphRewrite] | None, names: Sequence[str]) -> Sequence[GraphRewrite] | None:
    """Those that are named, with their settings where they are in the recipe already; without names, the recipe's."""
    if "none" in names:
        if len(names) > 1:
            raise RecipeError(f"--rewrite none stands alone; found {', '.join(names)}.")
        return []
    if not names:
        return base
    known = {type(rewrite): rewrite for rewrite in base or ()}
    return [known.get(REWRITES[name]) or REWRITES[name]() for name in names]


def _with_rewrite_settings(
    rewrites: Sequence[GraphRewrite], called: str, settings: Sequence[Setting]
) -> list[GraphRewrite]:
    wanted = REWRITES.get(called)
    if not any(type(rewrite) is wanted for rewrite in rewrites):
        raise RecipeError(
            f"--set {settings[0].written}: '{called}' is none of the rewrites that the recipe asks for. Give --rewrite "
            f"with one of {', '.join(REWRITES)}."
        )
    return [with_settings(one, settings, REWRITES) if type(one) is wanted else one for one in rewrites]


def _activations(base: Activations | None, options: RecipeOptions) -> Activations | None:
    """The recipe's activations with what the options say."""
    if options.activations == 0:
        if options.activation_ranges is not None:
            raise RecipeError("--activation-ranges needs activations to quantize, but --activations is float.")
        return None
    if options.activations is None and base is None:
        if options.activation_ranges is not None:
            raise RecipeError("--activation-ranges: activations stay in float; give --activations 8 to quantize them.")
        return None
    chosen = base or (Activations(ranges=ActivationBatchNorm()) if options.data_free else Activations())
    ranges = _method(chosen.ranges, options.activation_ranges, ACTIVATION_RANGES)
    return dataclasses.replace(chosen, ranges=ranges, **_given(bits=options.activations))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _pair(text: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=") if option == "--override" else text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise RecipeError(f"{option} {text}: expected NAME=VALUE, for instance {option} {example}.")
    return name.strip(), value.strip()


def _overrides(base: Overrides, texts: Sequence[str], weights: Weights) -> dict[str, Override]:
    """The recipe's and the command line's, in the order in which the last match counts."""
    overrides = dict(base)
    for text in texts:
        layer, value = _pair(text, "--override", "classifier=8")
        if re.search("=[^=]*per-[a-z]+$", layer.lower()):  # per-group=32, by mistake: a layer's name may have a "="
            layer, value = _pair(f"{layer}:{value}", "--override", "classifier=8")
            raise RecipeError(f"--override {text}: write a colon before a size, --override {layer}={value}.")
        before = overrides.pop(layer, None)  # to come last again
        try:
            activations = None if before is None else before.activations
            own = before.weights if before is not None and isinstance(before.weights, Weights) else weights
            overrides[layer] = Override(FLOAT if value.lower() == FLOAT else _changed(own, value.lower()), activations)
        except RecipeError as error:
            raise RecipeError(f"--override {text}: {error}") from error
    return overrides


def _changed(weights: Weights, value: str) -> Weights:
    """Weights with the bits, the granularity or both that the value says.

    Raises:
        RecipeError: it says something else, or one of them twice.
    """
    changes: dict[str, Any] = {}
    for part in map(str.strip, value.split(",")):
        name = "bits" if re.fullmatch("[0-9]{1,9}", part) else "granularity"
        if name in changes:
            raise RecipeError(f"'{value}' gives {name} twice; give it once.")
        changes[name] = int(part) if name == "bits" else _granularity(part)
    return dataclasses.replace(weights, **changes)


def _granularity(text: str) -> Granularity:
    """What `granularity_name` writes, with a colon before the size.

    Raises:
        RecipeError: it is none.
    """
    name, colon, size = text.partition(":")
    kind = GRANULARITIES.get(name)
    if kind is PerGroup and re.fullmatch("[0-9]{1,9}", size):
        return PerGroup(int(size))
    if kind is None or kind is PerGroup or colon:
        raise RecipeError(
            f"'{text}' is neither a number of bits nor one of per-tensor, per-channel and per-group:N. Write for "
            "instance 8, or 8,per-tensor, or per-group:32; or float alone, to leave the layer in float. Other settings "
            "for a layer go into a recipe file (--recipe)."
        )
    return kind()
