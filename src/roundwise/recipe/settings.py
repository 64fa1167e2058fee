"""What the user wants: bits, granularity, methods, exceptions by layer, seed. As Python, as a dict, as TOML.

seed = 0
rewrites = [{ method = "outlier-channel-splitting", ratio = 0.05 }]     # of the float network, in order

[weights]
bits = 4
granularity = { kind = "per-channel" }
ranges = { method = "weight-mse" }

[rounding]
method = "adaround"
iterations = 10000

[correction]                    # without this table biases are left to the rounding method
method = "empirical-bias"

[activations]                   # without this table they stay in float
bits = 8
ranges = { method = "mse" }

[overrides."features.0.*"]      # a layer's name or a glob, in quotes where it has dots; the last match counts
bits = 8                        # what is left out is as in [weights]

[overrides.classifier]
float = true                    # stays in float
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from roundwise.errors import RecipeError
from roundwise.methods.activations import ACTIVATION_RANGES, ActivationMSE
from roundwise.methods.corrections import CORRECTIONS, AnalyticBias
from roundwise.methods.interfaces import ActivationRanges, Correction, GraphRewrite, RangeEstimator, RoundingSolver
from roundwise.methods.ranges import RANGE_ESTIMATORS, WeightMSE
from roundwise.methods.rewrites import REWRITES, CrossLayerEqualization, HighBiasAbsorption
from roundwise.methods.rounding import ROUNDING_SOLVERS, GramAdaRound, Nearest
from roundwise.numerics.grid import Codebook, Granularity, PerChannel, PerGroup, PerTensor
from roundwise.recipe.plain import (
    CustomActivationRanges,
    CustomCorrection,
    CustomRanges,
    CustomRewrite,
    CustomRounding,
    check_choice,
    check_whole_number,
    method_from_dict,
    method_to_dict,
    settings_from_dict,
)
from roundwise.recipe.toml import to_toml

GRANULARITIES: dict[str, type[Granularity]] = {
    "per-channel": PerChannel,
    "per-group": PerGroup,
    "per-tensor": PerTensor,
}


_TABLES: tuple[Mapping[str, type], ...] = (
    REWRITES,
    RANGE_ESTIMATORS,
    ROUNDING_SOLVERS,
    CORRECTIONS,
    ACTIVATION_RANGES,
)


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
        Codebook(self.bits, self.symmetric)  # raises
        check_choice("granularity", self.granularity, Granularity, GRANULARITIES)
        check_choice("ranges", self.ranges, RangeEstimator, RANGE_ESTIMATORS)
        if self.rounding is not None:
            check_choice("rounding", self.rounding, RoundingSolver, ROUNDING_SOLVERS)

    @property
    def codebook(self) -> Codebook:
        """The integers that a code may take."""
        return Codebook(self.bits, self.symmetric)


@final
@dataclass(frozen=True)
class Activations:
    """How tensors between operations are quantized, each with one scale (`graph/analysis/activations.py`: which).

    Args:
        bits: 2 to 8, or 16.
        symmetric: signed codes around zero point 0, or unsigned codes with a zero point.
        ranges: how each tensor's range is chosen from the values that the calibration samples give it.
        adapt_rounding: True sets ranges first, from the float network, so that the rounding of weights adapts to
            quantized inputs; False rounds weights with activations in float and sets ranges afterwards, from the
            network with rounded weights, as the paper does.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.
    """

    bits: int = 8
    symmetric: bool = False
    ranges: ActivationRanges[Any] = ActivationMSE()
    adapt_rounding: bool = True

    def __post_init__(self) -> None:
        Codebook(self.bits, self.symmetric)  # raises
        check_choice("ranges", self.ranges, ActivationRanges, ACTIVATION_RANGES)
        if type(self.adapt_rounding) is not bool:
            raise RecipeError(f"adapt_rounding={self.adapt_rounding!r}: it must be True or False.")

    @property
    def codebook(self) -> Codebook:
        """The integers that a code may take."""
        return Codebook(self.bits, self.symmetric)


@final
class Overrides(Mapping[str, Weights | None]):
    """Exceptions by layer name or glob, in order; cannot be changed, so that a recipe cannot."""

    def __init__(self, entries: Mapping[str, Weights | None]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Weights | None:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        # The order counts, unlike in a dict: of several matches, the last one is taken.
        return isinstance(other, Mapping) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return repr(self._entries)


@final
@dataclass(frozen=True)
class Recipe:
    """Everything that decides what `quantize` does.

    Args:
        weights: for every layer that no override names.
        rounding: the solver for every layer that does not name its own.
        overrides: from layer names or globs (`"features.0.*"`) to other `Weights`, or to None to keep a layer in float.
            Where several match, the last one counts, and it counts alone: `Weights(bits=8)` has the defaults for all
            else. (`dataclasses.replace(weights, bits=8)` changes the bits only.)
        seed: of every random choice, any int; each layer has a generator of its own, seeded by (seed, layer name).
        batch_size: samples that run through the network at a time. Results may differ in the last digits between
            batch sizes, never with how the samples were handed over. None is 32, or on a CPU fewer where samples are
            large: 6 images of 224 × 224.
        memory_budget: bytes of activations kept in memory between layers; what exceeds it goes to temporary files.
            None takes half of what is free when the run starts.
        activations: how tensors between operations are quantized; None leaves them in float.
        correction: what each layer's bias does about an error that the codes leave; None leaves it to the solver.
        rewrites: what is done to the float network before, in order; its outputs stay the same, unless a rewrite says
            that it is not exact. Batch-norms are folded in any case, before these. None equalizes
            (`CrossLayerEqualization`) where one scale serves a whole weight tensor, and absorbs high biases after that
            where activations are quantized (`HighBiasAbsorption`); an empty sequence is nothing in any case.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    Example:
        >>> recipe = Recipe(weights=Weights(bits=3), overrides={"classifier": Weights(bits=8), "stem.*": None})
        >>> Recipe.from_dict(recipe.as_dict()) == recipe
        True
    """

    weights: Weights = Weights()
    rounding: RoundingSolver[Any] = GramAdaRound()
    overrides: Mapping[str, Weights | None] = field(default_factory=dict)
    seed: int = 0
    batch_size: int | None = None
    memory_budget: int | None = None
    activations: Activations | None = None
    correction: Correction[Any] | None = None
    rewrites: Sequence[GraphRewrite] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Weights):
            raise RecipeError(f"weights is {self.weights!r}; it must be an object such as Weights(bits=4).")
        check_choice("rounding", self.rounding, RoundingSolver, ROUNDING_SOLVERS)
        if self.correction is not None:
            check_choice("correction", self.correction, Correction, CORRECTIONS)
        if self.rewrites is not None:
            if not isinstance(self.rewrites, list | tuple):
                raise RecipeError(f"rewrites is {self.rewrites!r}; it must be a tuple of objects, empty for none.")
            for number, one in enumerate(self.rewrites):
                check_choice(f"rewrites[{number}]", one, GraphRewrite, REWRITES)
            object.__setattr__(self, "rewrites", tuple(self.rewrites))
        if not isinstance(self.activations, Activations | None):
            raise RecipeError(
                f"activations is {self.activations!r}; it must be an object such as Activations(bits=8), or None to "
                "leave them in float."
            )
        if not isinstance(self.overrides, Mapping):
            raise RecipeError(
                f"overrides is {self.overrides!r}; it must be a dict from layer names to Weights, such as "
                '{"classifier": Weights(bits=8), "features.0.*": None}.'
            )
        for name, value in self.overrides.items():
            if not isinstance(name, str):
                raise RecipeError(f"overrides: {name!r} is not a layer's name, which is a string such as 'features.0'.")
            if value is not None and not isinstance(value, Weights):
                raise RecipeError(
                    f"overrides['{name}'] is {value!r}; it must be an object such as Weights(bits=8), or None to keep "
                    "the layer in float."
                )
        object.__setattr__(self, "overrides", Overrides(self.overrides))
        check_whole_number("seed", self.seed)
        if self.batch_size is not None:
            check_whole_number("batch_size", self.batch_size, at_least=1)
        if self.memory_budget is not None:
            check_whole_number("memory_budget", self.memory_budget, at_least=0)

    @classmethod
    def data_free(cls) -> Recipe:
        """What needs no data: 8-bit weights rounded to nearest, after equalization, absorption and correction."""
        rewrites = (CrossLayerEqualization(), HighBiasAbsorption())
        return cls(Weights(bits=8), Nearest(), correction=AnalyticBias(), rewrites=rewrites)

    @property
    def all_rewrites(self) -> Sequence[GraphRewrite]:
        """The rewrites, and where they were left open those that the granularity of the weights asks for.

        With one scale for a tensor, equalization is the difference between a network and noise: MobileNetV2 with 4 bits
        has 78.8 % of its classes right instead of 0.3 %. With a scale for each channel it has 78.0 % instead of 79.8 %,
        two errors of measurement at most: nothing is gained for what the limits of channels cost at run time. Networks
        whose channels are alike already, as random weights are, may lose a little.

        Channels with hardly any weights are constants, which equalization makes as large as millions: where activations
        are quantized, absorption takes them away again, and is not left out.
        """
        if self.rewrites is not None:
            return self.rewrites
        if not isinstance(self.weights.granularity, PerTensor):
            return ()
        equalized = CrossLayerEqualization()
        return (equalized,) if self.activations is None else (equalized, HighBiasAbsorption())

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
            "seed": self.seed,
            "weights": _weights_to_dict(self.weights),
            "rounding": method_to_dict(self.rounding, ROUNDING_SOLVERS),
            "overrides": {
                name: {"float": True} if weights is None else _weights_to_dict(weights)
                for name, weights in self.overrides.items()
            },
        }
        if self.activations is not None:
            data["activations"] = {
                "bits": self.activations.bits,
                "symmetric": self.activations.symmetric,
                "ranges": method_to_dict(self.activations.ranges, ACTIVATION_RANGES),
                "adapt_rounding": self.activations.adapt_rounding,
            }
        if self.correction is not None:
            data["correction"] = method_to_dict(self.correction, CORRECTIONS)
        if self.rewrites is not None:
            data["rewrites"] = [method_to_dict(rewrite, REWRITES) for rewrite in self.rewrites]
        sizes = {"batch_size": self.batch_size, "memory_budget": self.memory_budget}
        data |= {name: size for name, size in sizes.items() if size is not None}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `as_dict`; anything left out takes its default, or in an override its value in `weights`.

        Raises:
            RecipeError: a name or a value is unknown.
        """
        settings = settings_from_dict(data, {f.name for f in dataclasses.fields(cls)}, "recipe")
        weights = settings["weights"] = _weights_from_dict(settings.get("weights", {}), Weights())
        if "rounding" in settings:
            settings["rounding"] = method_from_dict(
                settings["rounding"], ROUNDING_SOLVERS, "rounding", custom=CustomRounding
            )
        if "correction" in settings:
            settings["correction"] = method_from_dict(
                settings["correction"], CORRECTIONS, "correction", custom=CustomCorrection
            )
        if "rewrites" in settings:
            settings["rewrites"] = _rewrites_from_dict(settings["rewrites"])
        if "activations" in settings:
            settings["activations"] = _activations_from_dict(settings["activations"])
        overrides = settings.get("overrides")
        if isinstance(overrides, Mapping):
            settings["overrides"] = {name: _override_from_dict(name, item, weights) for name, item in overrides.items()}
        return cls(**settings)

    def as_toml(self) -> str:
        """The recipe as the text of a TOML file laid out as above, with every setting.

        Raises:
            RecipeError: a method is of your own making, and so has no name that a file could hold.
        """
        all_weights = [self.weights, *(weights for weights in self.overrides.values() if weights is not None)]
        methods: list[object] = [
            *(self.rewrites or ()),
            self.rounding,
            self.correction,
            *(method for w in all_weights for method in (w.ranges, w.rounding)),
        ]
        if self.activations is not None:
            methods.append(self.activations.ranges)
        known = {kind for table in _TABLES for kind in table.values()}
        for method in methods:
            if method is not None and type(method) not in known:
                raise RecipeError(f"{method!r} is a method of your own: a TOML file could only name it, not hold it.")
        return to_toml(self.as_dict())

    def to_toml(self, path: str | Path) -> None:
        """Write `as_toml` to a file.

        Raises:
            RecipeError: a method is of your own making, and so has no name that a file could hold.
        """
        Path(path).write_text(self.as_toml(), encoding="utf-8")

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file laid out as above.

        Raises:
            RecipeError: the file cannot be read, is not TOML, or a name or value in it is unknown.
        """
        try:
            # Some editors begin UTF-8 files with a mark, which is no TOML.
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8-sig")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{path} is not a TOML file: {error}. A recipe has lines such as bits = 4 below [weights]; "
                "Recipe().to_toml(path) writes one with all settings."
            ) from error
        except OSError as error:
            raise RecipeError(f"cannot read the recipe {path}: {error.strerror}.") from error
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error


# ------------------------------------------------------------------------------------------------ objects to plain data


def _weights_to_dict(weights: Weights) -> dict[str, Any]:
    data: dict[str, Any] = {
        "bits": weights.bits,
        "granularity": method_to_dict(weights.granularity, GRANULARITIES, key="kind"),
        "symmetric": weights.symmetric,
        "ranges": method_to_dict(weights.ranges, RANGE_ESTIMATORS),
    }
    if weights.rounding is not None:
        data["rounding"] = method_to_dict(weights.rounding, ROUNDING_SOLVERS)
    return data


# ------------------------------------------------------------------------------------------------ plain data to objects


def _override_from_dict(name: str, entry: Any, weights: Weights) -> Weights | None:
    where = f"overrides '{name}'"
    if isinstance(entry, Mapping) and "float" in entry:
        if dict(entry) != {"float": True}:
            raise RecipeError(f"{where}: 'float = true' stands alone; found {dict(entry)!r}.")
        return None
    if full_name := _split_by_dots(name, entry):
        raise RecipeError(f'overrides: a layer\'s name that has dots needs quotes. Write [overrides."{full_name}"].')
    try:
        # A layer's own solver is an exception already, so it is not passed on.
        return _weights_from_dict(entry, dataclasses.replace(weights, rounding=None))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def _split_by_dots(name: str, entry: Any) -> str | None:
    """The name that was meant where TOML made tables in tables of it, as of `[overrides.features.0]`."""
    known = {"float", *(f.name for f in dataclasses.fields(Weights))}
    inner = [key for key, value in entry.items() if isinstance(value, Mapping)] if isinstance(entry, Mapping) else []
    if not inner or inner[0] in known:
        return None
    inner_name = f"{name}.{inner[0]}"
    return _split_by_dots(inner_name, entry[inner[0]]) or inner_name


def _weights_from_dict(data: Any, base: Weights) -> Weights:
    settings = settings_from_dict(data, {f.name for f in dataclasses.fields(Weights)}, "weights")
    if "granularity" in settings:
        settings["granularity"] = method_from_dict(settings["granularity"], GRANULARITIES, "granularity", key="kind")
    if "ranges" in settings:
        settings["ranges"] = method_from_dict(settings["ranges"], RANGE_ESTIMATORS, "ranges", custom=CustomRanges)
    if "rounding" in settings:
        settings["rounding"] = method_from_dict(
            settings["rounding"], ROUNDING_SOLVERS, "rounding", custom=CustomRounding
        )
    return dataclasses.replace(base, **settings)


def _activations_from_dict(data: Any) -> Activations:
    settings = settings_from_dict(data, {f.name for f in dataclasses.fields(Activations)}, "activations")
    if "ranges" in settings:
        settings["ranges"] = method_from_dict(
            settings["ranges"], ACTIVATION_RANGES, "activations: ranges", custom=CustomActivationRanges
        )
    return Activations(**settings)


def _rewrites_from_dict(data: Any) -> tuple[GraphRewrite, ...]:
    if not isinstance(data, list | tuple):
        raise RecipeError(f"rewrites: expected a list of tables; found {data!r}.")
    return tuple(method_from_dict(entry, REWRITES, "rewrites", custom=CustomRewrite) for entry in data)


def granularity_name(granularity: Granularity) -> str:
    """The granularity in one word for tables: `per-tensor`, `per-channel`, `per-group 32`."""
    name = next(name for name, kind in GRANULARITIES.items() if type(granularity) is kind)
    return f"{name} {granularity.size}" if isinstance(granularity, PerGroup) else name
