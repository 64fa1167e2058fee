"""From options to a recipe: the recipe file, or else the default recipe, changed as the options say.

A recipe is changed as plain data (`Recipe.as_dict`) and read back after every change. So options go through the same
checks as recipe files, a new method needs no line here, and an error names the option that caused it. If a recipe has
several stages of a kind, an option changes all of them.
"""

from __future__ import annotations

import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import click

from roundwise.cli.options import ADVANCED, METHOD, choice, file, flag, number, option
from roundwise.cli.parameters import memory, seed
from roundwise.errors import RecipeError
from roundwise.methods.activations import ACTIVATION_RANGES, ActivationBatchNorm
from roundwise.methods.compression import COMPRESSION_METHODS
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.numerics.grid import BITS
from roundwise.recipe.files import name_of, to_plain
from roundwise.recipe.limits import parse_toml
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import FLOAT, GRANULARITIES, Activations, Weights, granularity_name
from roundwise.recipe.stages import Quantize, Rewrite
from roundwise.targets import TARGETS

Plain = dict[str, Any]

WEIGHTS = Weights()
NONE: Literal["none"] = "none"

_SHORT = {"": "rounding", "ranges": "weights.ranges"}
"""Targets of `--set` that have a shorter name than their place in a stage."""

_TARGETS = ("weights", "ranges", "activations", "activations.ranges", "finetune", "finetune.quantization")
"""What a user may write before the dot of `--set`, beside the names of rewrites and methods of compression."""

_OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("bits", "activations", "edge_bits", "rounding", "ranges", "correction", "seed", "batch_size")
}
"""Settings that an option gives, and not `--set`."""

_STAGE = re.compile(r"^recipe: stages\[\d+\] '[a-z]+': ")
"""How a message begins that names a stage of a recipe."""


def default(text: object) -> str:
    """The end of an option's help, for options that leave the recipe file alone when the user does not give them."""
    return f"  [default: {text}]"


@final
@dataclass(frozen=True)
class RecipeOptions:
    """The options that shape a recipe; None, or empty, where the user gave none.

    Raises:
        click.UsageError: more than one granularity.
    """

    bits: int | None = choice(
        METHOD, f"Bits of a weight: {BITS[0]} to {BITS[-2]}, or {BITS[-1]}." + default(WEIGHTS.bits), BITS, metavar="N"
    )
    activations: int | Literal["float"] | None = choice(
        METHOD, "Bits of the tensors between operations." + default(FLOAT), [*BITS, FLOAT], metavar="N"
    )
    edge_bits: int | None = choice(
        METHOD, "Bits of the first and last layers and their inputs." + default("as others"), BITS, metavar="N"
    )
    rounding: str | None = choice(
        METHOD, "How codes are chosen." + default(name_of(Quantize().rounding, ROUNDING_SOLVERS)), ROUNDING_SOLVERS
    )
    one_per_channel: bool = flag(
        METHOD, "One scale per output channel." + default(granularity_name(WEIGHTS.granularity)), "--per-channel"
    )
    one_per_tensor: bool = flag(METHOD, "One scale per weight tensor.", "--per-tensor")
    one_per_group: int | None = number(METHOD, "One scale per N neighbouring columns.", "--per-group", least=2)
    overrides: tuple[str, ...] = option(
        METHOD,
        "Exceptions, repeatable; the last match counts. LAYER is a name, a glob, or op:KIND such as op:add. VALUE is "
        "8, float, per-tensor, per-channel, per-group:32, activations:8 or activations:float, or several with commas.",
        "--override",
        default=(),
        metavar="LAYER=VALUE",
    )
    settings: tuple[str, ...] = option(
        METHOD,
        "A setting of the rounding method, or of another: ranges.NAME, activations.NAME, activations.ranges.NAME, "
        "rewrites.REWRITE.NAME, finetune.NAME. Repeatable. `roundwise methods METHOD` lists them.",
        "--set",
        default=(),
        metavar="NAME=VALUE",
    )
    target: str | None = choice(METHOD, "What it is to run on: ort-cpu, tensorrt, …" + default("any"), TARGETS)
    recipe: Path | None = file(METHOD, "A recipe in TOML, which the other options change.")
    ranges: str | None = choice(
        ADVANCED, "How scales are chosen." + default(name_of(WEIGHTS.ranges, RANGE_ESTIMATORS)), RANGE_ESTIMATORS
    )
    asymmetric: bool = flag(ADVANCED, "Unsigned codes with a zero point.")
    activation_ranges: str | None = choice(
        ADVANCED,
        "How ranges of activations are chosen." + default(name_of(Activations().ranges, ACTIVATION_RANGES)),
        ACTIVATION_RANGES,
    )
    rewrites: tuple[str, ...] = choice(
        ADVANCED,
        "Change the float network first, but not its outputs. Repeatable; none for none."
        + default("cross-layer-equalization with --per-tensor, then high-bias-absorption with --activations"),
        [*REWRITES, NONE],
        "--rewrite",
        default=(),
    )
    correction: str | None = choice(ADVANCED, "How biases are corrected." + default(NONE), [*CORRECTIONS, NONE])
    seed: int | None = option(ADVANCED, "Of all random choices." + default(Recipe().seed), type=seed, metavar="N")
    batch_size: int | None = number(ADVANCED, "Samples at a time." + default("32; on a CPU fewer if they are large"))
    memory_budget: int | None = option(
        ADVANCED,
        "For activations; the rest goes to disk." + default("half of free memory"),
        type=memory,
        metavar="SIZE",
    )

    def __post_init__(self) -> None:
        if sum((self.one_per_tensor, self.one_per_channel, self.one_per_group is not None)) > 1:
            raise click.UsageError("--per-tensor, --per-channel and --per-group exclude each other. Give one of them.")

    @property
    def granularity(self) -> Plain | None:
        """The granularity as plain data."""
        if self.one_per_group is not None:
            return {"kind": "per-group", "size": self.one_per_group}
        if self.one_per_tensor:
            return {"kind": "per-tensor"}
        return {"kind": "per-channel"} if self.one_per_channel else None


def build_recipe(options: RecipeOptions, *, data_free: bool = False) -> Recipe:
    """Change the recipe file, or the default recipe, as the options say.

    Args:
        options: of the command line.
        data_free: whether the default is the recipe that needs no data, and so for ranges of activations.

    Raises:
        RecipeError: an option or a line of the file makes no sense; the known values are listed.
    """
    return changed(first_recipe(options, data_free=data_free), options, data_free=data_free)


def first_recipe(options: RecipeOptions, *, data_free: bool = False) -> Recipe:
    """The recipe file, or the default recipe.

    Raises:
        RecipeError: a line of the file makes no sense, or it does not quantize.
    """
    if options.recipe is not None:
        recipe = Recipe.from_toml(options.recipe)
    else:
        recipe = Recipe.data_free() if data_free else Recipe()
    recipe.stage(Quantize)  # raises if there is none
    return recipe


def changed(recipe: Recipe, options: RecipeOptions, *, data_free: bool = False) -> Recipe:
    """The recipe, changed as the options say.

    Raises:
        RecipeError: an option makes no sense; the known values are listed.
    """
    with _naming():
        recipe = _with_stages(recipe, partial(_with_options, options=options, data_free=data_free))
        run = _given(
            seed=options.seed, batch_size=options.batch_size, memory_budget=options.memory_budget, target=options.target
        )
        recipe = Recipe.from_dict(recipe.as_dict() | run)
    bits = {"activations": f"--activations {options.activations}"} if options.activations is not None else {}
    recipe = with_settings_of(recipe, options.settings, bits)
    for text in options.overrides:
        with _naming(f"--override {text}"):
            recipe = _with_stages(recipe, partial(_with_override, text=text))
    return recipe


def with_settings_of(recipe: Recipe, texts: Sequence[str], bits: Mapping[str, str] | None = None) -> Recipe:
    """The recipe, changed as the options `--set` say.

    Args:
        recipe: to be changed.
        texts: what the user wrote after each `--set`.
        bits: the options that have given the bits of a target already.

    Raises:
        RecipeError: an option makes no sense; the known values are listed.
    """
    for target, settings in _by_target(texts).items():
        with _naming(" ".join(f"--set {setting.written}" for setting in settings)):
            values = {setting.name: setting.value for setting in settings}
            if bits and target in bits and "bits" in values:
                raise RecipeError(f"{bits[target]} gives the bits already; leave out one of them.")
            if not target:
                _check_rounding(recipe, settings)
            recipe = _with_settings(recipe, target, values)
    return recipe


def _with_stages(recipe: Recipe, change: Callable[[Plain], Plain]) -> Recipe:
    """The recipe with every stage changed, as plain data."""
    plain = recipe.as_dict()
    return Recipe.from_dict(plain | {"stages": [change(stage) for stage in plain["stages"]]})


@contextmanager
def _naming(option: str = "") -> Iterator[None]:
    """Begin the message of an error with the option that caused it, if one alone did.

    The stage is left out: the user gave an option, and perhaps no recipe.
    """
    try:
        yield
    except RecipeError as error:
        message = _STAGE.sub("", str(error))
        raise RecipeError(f"{option}: {message}" if option else message) from error


def _given(**options: Any) -> Plain:
    return {name: value for name, value in options.items() if value is not None}


# ---------------------------------------------------------------------------------------------- options with names


def _with_options(stage: Plain, options: RecipeOptions, *, data_free: bool) -> Plain:
    """A stage, changed by all options except `--set` and `--override`."""
    if stage["stage"] == "rewrite":
        return stage | _given(methods=_rewrites(stage.get("methods"), options.rewrites))
    if stage["stage"] in ("compress", "finetune"):
        return stage
    weights = stage["weights"]
    symmetric = False if options.asymmetric else None
    ranges = _method(weights["ranges"], options.ranges)
    weights = weights | _given(bits=options.bits, granularity=options.granularity, symmetric=symmetric, ranges=ranges)
    changed = {
        "weights": weights,
        "rounding": _method(stage["rounding"], options.rounding),
        "activations": _activations(stage.get("activations"), options, data_free=data_free),
        "edge_bits": stage.get("edge_bits") if options.edge_bits is None else options.edge_bits,
        "correction": None if options.correction == NONE else _method(stage.get("correction"), options.correction),
    }
    return {name: value for name, value in (stage | changed).items() if value is not None}


def _method(base: Plain | None, name: str | None) -> Plain | None:
    """The method of this name, with the settings that the recipe gives it if it is the recipe's own."""
    return base if name is None or (base is not None and base.get("method") == name) else {"method": name}


def _rewrites(base: Sequence[Plain] | None, names: Sequence[str]) -> Sequence[Plain] | None:
    """The named rewrites, with the settings that the recipe gives them; without names, the recipe's rewrites."""
    if NONE in names:
        if len(names) > 1:
            raise RecipeError(
                f"--rewrite {NONE} stands alone; found {', '.join(names)}. Leave out {NONE}, or the others."
            )
        return []
    known = {one.get("method"): one for one in base or ()}
    return [known.get(name, {"method": name}) for name in names] if names else base


def _activations(base: Plain | None, options: RecipeOptions, *, data_free: bool) -> Plain | None:
    """The recipe's activations, changed as the options say; None leaves them in float."""
    if options.activations == FLOAT or (options.activations is None and base is None):
        if options.activation_ranges is not None:
            raise RecipeError(
                f"--activation-ranges {options.activation_ranges}: activations stay in float and have no ranges. Give "
                "--activations 8 to quantize them."
            )
        return None
    if base is None:
        base = to_plain(Activations(ranges=ActivationBatchNorm()) if data_free else Activations())
    return base | _given(bits=options.activations, ranges=_method(base["ranges"], options.activation_ranges))


# ------------------------------------------------------------------------------------------------------------ --set


class Setting(NamedTuple):
    """One of a method's settings, its value as plain data, and what the user wrote."""

    name: str
    value: Any
    written: str


def _by_target(texts: Sequence[str]) -> dict[str, list[Setting]]:
    """Settings by the method that they belong to: some of them make sense only together."""
    targets: dict[str, list[Setting]] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not key or not equals or not value:
            raise RecipeError(f"--set {text}: this is not NAME=VALUE. Write for instance --set iterations=2000.")
        target, _, name = key.rpartition(".")
        targets.setdefault(target, []).append(Setting(name, parse_value(value), text))
    return targets


def parse_value(text: str) -> Any:
    """Read a value as TOML has it. None is written none, and text needs no quotes.

    Example:
        >>> parse_value("2e3"), parse_value("no"), parse_value("none"), parse_value("keep")
        (2000.0, False, None, 'keep')
    """
    words = {"none": None, "true": True, "yes": True, "false": False, "no": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _with_settings(recipe: Recipe, target: str, values: Plain) -> Recipe:
    """The recipe with other settings for one method, in every stage that has the method."""
    if target.startswith("rewrites."):  # which the recipe may leave open
        methods = recipe.stage(Rewrite).methods_before(recipe.stage(Quantize))
        recipe = recipe.with_settings(Rewrite, methods=methods)
    plain = recipe.as_dict()
    tables = [table for stage in plain["stages"] for table in _tables(stage, target)]
    if not tables:
        raise RecipeError(_no_table(target))
    for table in tables:
        table.update(values)
    return Recipe.from_dict(plain)


def _check_rounding(recipe: Recipe, settings: Sequence[Setting]) -> None:
    """Raise for a setting without a target that the rounding method does not have, and another place has."""
    for rounding in (stage.rounding for stage in recipe.stages if isinstance(stage, Quantize)):
        known = typing.get_type_hints(type(rounding))
        for name, _, written in (setting for setting in settings if setting.name not in known):
            plain = recipe.as_dict()["stages"]
            places = [it for it in _TARGETS if any(name in table for stage in plain for table in _tables(stage, it))]
            write = " or ".join(f"--set {place}.{written}" for place in places)
            if name in _OPTIONS:
                write = f"{_OPTIONS[name]} {written.partition('=')[2].strip()}"
            if write:
                method = name_of(rounding, ROUNDING_SOLVERS)
                raise RecipeError(f"'{name}' is not a setting of the rounding method {method}. Write {write}.")


def _tables(stage: Plain, target: str) -> list[Plain]:
    """The tables of a stage that a target means."""
    if stage["stage"] == "rewrite":
        return [one for one in stage.get("methods", ()) if target == f"rewrites.{one.get('method')}"]
    if stage["stage"] == "compress":
        named = [(one.get("method"), one) for one in stage["methods"]]
        return [one for name, one in (*named, ("choice", stage["choice"])) if name == target]
    place = _SHORT.get(target, target).split(".")
    if stage["stage"] == "finetune" and place.pop(0) != "finetune":
        return []
    table: Any = stage
    for name in place:
        table = table.get(name) if isinstance(table, dict) else None
    return [table] if isinstance(table, dict) else []


def _no_table(target: str) -> str:
    if target.startswith("rewrites."):
        return (
            f"'{target.removeprefix('rewrites.')}' is not one of the recipe's rewrites. Give it with --rewrite; there "
            f"are {', '.join(REWRITES)}."
        )
    if target in ("activations", "activations.ranges"):
        return "activations stay in float and have no settings. Give --activations 8 to quantize them."
    if target in COMPRESSION_METHODS or target == "choice":
        return f"the recipe does not compress with '{target}'. `roundwise compress --method {target}` does."
    if target.startswith("finetune"):
        return "the recipe does not train, so it has no such settings. `roundwise finetune` does."
    known = (
        "'rounding', 'ranges', 'activations', 'activations.ranges', 'rewrites.REWRITE', 'finetune', or the name of a "
        "method of compression"
    )
    return f"nothing in the recipe is called '{target}'. Write {known} before the dot."


# ------------------------------------------------------------------------------------------------------- --override


def _with_override(stage: Plain, text: str) -> Plain:
    """A stage with one more exception, which comes last and so counts most."""
    layer, equals, value = (part.strip() for part in text.rpartition("="))  # a layer's name may have a "="
    if not equals or not layer or not value:
        raise RecipeError("this is not NAME=VALUE. Write for instance --override classifier=8.")
    if re.search("=[^=]*per-[a-z]+$", layer.lower()):
        raise RecipeError(f"the size of a group follows a colon. Write --override {layer}:{value}.")
    if stage["stage"] != "quantize":
        return stage
    overrides = dict(stage["overrides"])
    override = overrides.pop(layer, {})
    for part, changes in _override(value.lower()).items():
        before = override.get(part)
        override[part] = changes if changes == FLOAT or not isinstance(before, dict) else before | changes
    return stage | {"overrides": overrides | {layer: override}}


def _override(value: str) -> Plain:
    """What `8,per-tensor,activations:16` changes: `{"weights": …, "activations": …}`.

    Raises:
        RecipeError: a part of it is unknown, or says the same as another.
    """
    found: Plain = {}
    for part in map(str.strip, value.split(",")):
        what, change = _part(part)
        if what in found:
            raise RecipeError(f"'{value}' gives {what} twice. Give it once.")
        found[what] = change
    if FLOAT in found and len(found.keys() - {"activations"}) > 1:
        raise RecipeError(
            f"'{value}' leaves the weights in float, which have no bits and scales. Leave out one of them."
        )
    activations = _given(activations=found.pop("activations", None))
    return activations if not found else {"weights": FLOAT if FLOAT in found else found} | activations


def _part(text: str) -> tuple[str, Any]:
    name, colon, rest = text.partition(":")
    if re.fullmatch("[0-9]{1,9}", text):
        return "bits", int(text)
    if text == FLOAT:
        return FLOAT, FLOAT
    if name == "activations" and re.fullmatch(f"[0-9]{{1,9}}|{FLOAT}", rest):
        return name, FLOAT if rest == FLOAT else {"bits": int(rest)}
    if name == "per-group" and re.fullmatch("[0-9]{1,9}", rest):
        return "granularity", {"kind": name, "size": int(rest)}
    if name in GRANULARITIES and name != "per-group" and not colon:
        return "granularity", {"kind": name}
    raise RecipeError(
        f"'{text}' is neither a number of bits, nor float, per-tensor, per-channel, per-group:N, activations:N or "
        "activations:float. Write for instance 8, or 8,per-tensor. Other settings for a layer go into a recipe file "
        "(--recipe)."
    )
