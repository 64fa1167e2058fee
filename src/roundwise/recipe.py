"""What the user wants: bits, granularity, methods, exceptions by layer, seed. As Python, as a dict, as TOML.

[weights]
bits = 4
granularity = { kind = "per-channel" }
ranges = { method = "weight-mse" }

[rounding]
method = "adaround-sgd"
iterations = 10000

[overrides.classifier]          # layer name or glob; `float = true` keeps the layer in float
bits = 8
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from roundwise.errors import RecipeError
from roundwise.grid import Codebook, Granularity, PerChannel, PerGroup, PerTensor
from roundwise.problem import RangeEstimator, RoundingSolver
from roundwise.ranges import RANGE_ESTIMATORS, WeightMSE
from roundwise.rounding import ROUNDING_SOLVERS, AdaRoundSGD

GRANULARITIES: dict[str, type[Granularity]] = {
    "per-channel": PerChannel,
    "per-group": PerGroup,
    "per-tensor": PerTensor,
}

DEFAULT_ROUNDING = AdaRoundSGD(iterations=1_000)


def _check(value: object, kinds: Any, what: str, example: str) -> None:
    if not isinstance(value, kinds):
        raise RecipeError(f"{what} is {value!r}; it must be an object such as {example}.")


@final
@dataclass(frozen=True)
class Weights:
    """How the weights of a layer are quantized.

    Args:
        bits: 2 to 8, or 16.
        granularity: what shares a scale: `PerTensor()`, `PerChannel()` or `PerGroup(size)`.
        symmetric: signed codes around zero point 0, or unsigned codes with a zero point.
        ranges: how scales (and zero points) are chosen.
        rounding: this layer's own solver; None takes the recipe's.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.
    """

    bits: int = 4
    granularity: Granularity = PerChannel()
    symmetric: bool = True
    ranges: RangeEstimator[Any] = WeightMSE()
    rounding: RoundingSolver[Any] | None = None

    def __post_init__(self) -> None:
        Codebook(self.bits)  # raises
        _check(
            self.granularity,
            (PerTensor, PerChannel, PerGroup),
            "granularity",
            "PerTensor(), PerChannel() or PerGroup(32)",
        )
        _check(self.ranges, RangeEstimator, "ranges", "WeightMSE() or MinMax()")
        if self.rounding is not None:
            _check(self.rounding, RoundingSolver, "rounding", "AdaRoundSGD() or Nearest()")

    @property
    def codebook(self) -> Codebook:
        """The integers that a code may take."""
        return Codebook(self.bits, self.symmetric)


@final
@dataclass(frozen=True)
class Recipe:
    """Everything that decides what `quantize` does.

    Args:
        weights: for every layer that no override names.
        rounding: the solver for every layer that does not name its own.
        overrides: from layer names or globs (`"features.0.*"`) to other `Weights`, or to None to keep a layer in float.
            Where several match, the last one counts.
        seed: of every random choice; each layer draws from a generator of its own, seeded by (seed, layer name).
        batch_size: samples that run through the network at a time. Results may differ in the last digits between
            batch sizes, never with how the samples were handed over.
        memory_budget: bytes of activations kept in memory between layers; what exceeds it goes to temporary files.
            None takes half of what is free when the run starts.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    Example:
        >>> recipe = Recipe(weights=Weights(bits=3), overrides={"classifier": Weights(bits=8), "stem.*": None})
        >>> Recipe.from_dict(recipe.as_dict()) == recipe
        True
    """

    weights: Weights = Weights()
    rounding: RoundingSolver[Any] = DEFAULT_ROUNDING
    overrides: Mapping[str, Weights | None] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 32
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        _check(self.weights, Weights, "weights", "Weights(bits=4)")
        _check(self.rounding, RoundingSolver, "rounding", "AdaRoundSGD() or Nearest()")
        for name, value in self.overrides.items():
            if value is not None:
                _check(value, Weights, f"overrides[{name!r}]", "Weights(bits=8), or None to keep the layer in float")
        if self.batch_size < 1:
            raise RecipeError(f"batch_size={self.batch_size}: at least one sample must run at a time.")
        if self.memory_budget is not None and self.memory_budget < 0:
            raise RecipeError(f"memory_budget={self.memory_budget}: give a number of bytes, 0 or more.")

    def resolve(self, names: Sequence[str]) -> dict[str, Weights | None]:
        """The settings of each layer in `names`; None where it stays in float.

        Raises:
            RecipeError: an override matches none of the names.
        """
        resolved: dict[str, Weights | None] = dict.fromkeys(names, self.weights)
        for pattern, weights in self.overrides.items():
            matches = [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]
            if not matches:
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or list(names[:3])
                inside = [name for name in names if name.startswith(pattern + ".")]
                hint = f" To name all {len(inside)} layers inside it, write '{pattern}.*'." if inside else ""
                raise RecipeError(
                    f"overrides: '{pattern}' matches none of the {len(names)} layers. "
                    f"The nearest names are {', '.join(repr(n) for n in near)}.{hint}"
                )
            resolved.update(dict.fromkeys(matches, weights))
        return resolved

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with methods by their names in the tables; without entries that are None."""
        data: dict[str, Any] = {
            "weights": _weights_to_dict(self.weights),
            "rounding": _method_to_dict(self.rounding, ROUNDING_SOLVERS, "method"),
            "overrides": {
                name: {"float": True} if weights is None else _weights_to_dict(weights)
                for name, weights in self.overrides.items()
            },
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
        if self.memory_budget is not None:
            data["memory_budget"] = self.memory_budget
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `as_dict`; anything left out takes its default.

        Raises:
            RecipeError: a name or a value is unknown.
        """
        settings = dict(data)
        _reject_unknown(settings, {f.name for f in dataclasses.fields(cls)}, "recipe")
        if "weights" in settings:
            settings["weights"] = _weights_from_dict(settings["weights"])
        if "rounding" in settings:
            settings["rounding"] = _method_from_dict(settings["rounding"], ROUNDING_SOLVERS, "method", "rounding")
        if "overrides" in settings:
            settings["overrides"] = {
                name: None if entry == {"float": True} else _weights_from_dict(entry)
                for name, entry in settings["overrides"].items()
            }
        return cls(**settings)

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file laid out as above.

        Raises:
            RecipeError: the file is not TOML, or a name or value in it is unknown.
        """
        try:
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not a TOML file: {error}.") from error


def _reject_unknown(settings: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in settings:
        if name not in known:
            raise RecipeError(f"{where}: '{name}' is not a setting. Known: {', '.join(sorted(known))}.")


def _method_to_dict(method: Any, table: Mapping[str, type], key: str) -> dict[str, Any]:
    for name, kind in table.items():
        if type(method) is kind:
            return {key: name, **{f.name: getattr(method, f.name) for f in dataclasses.fields(kind)}}
    # A method of the user's own cannot be named in a file; its text still tells a reader what was used.
    return {key: repr(method)}


def _method_from_dict(entry: Any, table: Mapping[str, type], key: str, where: str) -> Any:
    if isinstance(entry, str):
        entry = {key: entry}
    if not isinstance(entry, Mapping) or key not in entry:
        raise RecipeError(f"{where}: expected a table with '{key}' as one of {', '.join(table)}; found {entry!r}.")
    settings = dict(entry)
    name = settings.pop(key)
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1)
        raise RecipeError(
            f"{where}: '{name}' is not one of {', '.join(table)}." + (f" Did you mean '{near[0]}'?" if near else "")
        )
    kind = table[name]
    _reject_unknown(settings, {f.name for f in dataclasses.fields(kind)}, f"{where} '{name}'")
    return kind(**settings)


def _weights_to_dict(weights: Weights) -> dict[str, Any]:
    data: dict[str, Any] = {
        "bits": weights.bits,
        "granularity": _method_to_dict(weights.granularity, GRANULARITIES, "kind"),
        "symmetric": weights.symmetric,
        "ranges": _method_to_dict(weights.ranges, RANGE_ESTIMATORS, "method"),
    }
    if weights.rounding is not None:
        data["rounding"] = _method_to_dict(weights.rounding, ROUNDING_SOLVERS, "method")
    return data


def _weights_from_dict(data: Any) -> Weights:
    if not isinstance(data, Mapping):
        raise RecipeError(f"weights: expected a table of settings; found {data!r}.")
    settings = dict(data)
    _reject_unknown(settings, {f.name for f in dataclasses.fields(Weights)}, "weights")
    if "granularity" in settings:
        settings["granularity"] = _method_from_dict(settings["granularity"], GRANULARITIES, "kind", "granularity")
    if "ranges" in settings:
        settings["ranges"] = _method_from_dict(settings["ranges"], RANGE_ESTIMATORS, "method", "ranges")
    if "rounding" in settings:
        settings["rounding"] = _method_from_dict(settings["rounding"], ROUNDING_SOLVERS, "method", "rounding")
    return Weights(**settings)


def granularity_name(granularity: Granularity) -> str:
    """The granularity in one word for tables: `per-tensor`, `per-channel`, `per-group 32`."""
    name = next(name for name, kind in GRANULARITIES.items() if type(granularity) is kind)
    return f"{name} {granularity.size}" if isinstance(granularity, PerGroup) else name
