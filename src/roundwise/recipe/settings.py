"""What can be said of the weights and activations of a network: bits, granularity, ranges; and of single layers."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from roundwise.errors import RecipeError
from roundwise.methods.activations import ACTIVATION_RANGES, ActivationMSE
from roundwise.methods.interfaces import ActivationRanges, RangeEstimator, RoundingSolver
from roundwise.methods.ranges import RANGE_ESTIMATORS, WeightMSE
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.numerics.grid import BITS, Codebook, Granularity, PerChannel, PerGroup, PerTensor
from roundwise.recipe.checks import check_choice

GRANULARITIES: dict[str, type[Granularity]] = {
    "per-channel": PerChannel,
    "per-group": PerGroup,
    "per-tensor": PerTensor,
}

FLOAT: Literal["float"] = "float"
"""In an `Override`: leave the weights, or the activations, in float."""

KIND = "op:"
"""How a key of `Quantize.overrides` begins that names a kind of operation, such as `op:linear` or `op:add`."""


@final
@dataclass(frozen=True)
class Weights:
    """How the weights of a layer are quantized.

    Args:
        bits: 2 to 8, or 16.
        granularity: what shares a scale: `PerTensor()`, `PerChannel()` or `PerGroup(size)`.
        symmetric: True gives signed codes around zero point 0; False gives unsigned codes with a zero point.
        ranges: the method that chooses scales (and zero points).
        rounding: the solver for this layer; None takes the solver of the stage.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.
    """

    bits: int = 4
    granularity: Granularity = PerChannel()
    symmetric: bool = True
    ranges: RangeEstimator[Any] = WeightMSE()
    rounding: RoundingSolver[Any] | None = None

    def __post_init__(self) -> None:
        _check_codebook(self, "--override LAYER=float, or overrides={'LAYER': None} in a Recipe")
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
    """How tensors between operations are quantized. Each tensor has one scale.

    `graph/analysis/activations.py` says which tensors are quantized.

    Args:
        bits: 2 to 8, or 16.
        symmetric: True gives signed codes around zero point 0; False gives unsigned codes with a zero point. None
            leaves it to the target of the recipe: signed where the target has no zero points, else unsigned.
        ranges: the method that chooses each tensor's range from the values that the calibration samples give it.
        adapt_rounding: True chooses ranges first, on the float network, and then rounds weights on quantized inputs.
            False rounds weights on float inputs and then chooses ranges on the network with rounded weights, as the
            AdaRound paper does.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.
    """

    bits: int = 8
    symmetric: bool | None = None
    ranges: ActivationRanges[Any] = ActivationMSE()
    adapt_rounding: bool = True

    def __post_init__(self) -> None:
        _check_codebook(self, "--activations float, or activations=None in a Quantize; in a file, no such table")
        check_choice("ranges", self.ranges, ActivationRanges, ACTIVATION_RANGES)
        if type(self.adapt_rounding) is not bool:
            raise RecipeError(f"adapt_rounding={self.adapt_rounding!r}: it must be True or False.")

    @property
    def codebook(self) -> Codebook:
        """The integers that a code may take."""
        return Codebook(self.bits, False if self.symmetric is None else self.symmetric)


def _check_codebook(settings: Weights | Activations, in_float: str) -> None:
    """Raise unless there are such codes; says what they are of, and how to leave that in float.

    Raises:
        RecipeError: bits or symmetric is not possible.
    """
    try:
        Codebook(settings.bits, False if settings.symmetric is None else settings.symmetric)
    except RecipeError as error:
        what = type(settings).__name__
        float_instead = f" To leave {what.lower()} in float: {in_float}." if settings.bits not in BITS else ""
        raise RecipeError(f"{what}: {error}{float_instead}") from error


@final
@dataclass(frozen=True)
class Override:
    """What is different for some layers or tensors.

    Args:
        weights: settings for the weights of these layers; `"float"` leaves the weights in float; None changes nothing.
        activations: settings for these tensors; `"float"` leaves them in float; None changes nothing.

    Raises:
        RecipeError: a setting is of the wrong type, or nothing is different.
    """

    weights: Weights | Literal["float"] | None = None
    activations: Activations | Literal["float"] | None = None

    def __post_init__(self) -> None:
        for name, value, kind in (("weights", self.weights, Weights), ("activations", self.activations, Activations)):
            if not isinstance(value, kind) and value not in (FLOAT, None):
                raise RecipeError(
                    f"{name}={value!r}: it must be an object such as {kind.__name__}(bits=8), or 'float' to leave the "
                    f"{name} in float."
                )
        if self.weights is None and self.activations is None:
            raise RecipeError("Override(): nothing is different. Give weights=…, activations=…, or both.")


@final
class Overrides(Mapping[str, Override]):
    """Exceptions by name, glob or kind of operation, in order. Immutable, because a recipe is.

    Raises:
        RecipeError: a key is not text, or a value is nothing that an exception can be.
    """

    def __init__(self, entries: Mapping[str, Override | Weights | Activations | None]) -> None:
        if not isinstance(entries, Mapping):
            raise RecipeError(
                f"overrides is {entries!r}; it must be a dict from names of layers to settings, such as "
                '{"classifier": Weights(bits=8), "features.0.*": None}.'
            )
        self._entries = {name: _as_override(name, value) for name, value in entries.items()}

    def weights(self, names: Sequence[str], operations: Sequence[str], default: Weights) -> list[Weights | None]:
        """The settings of each layer; None where its weights stay in float. Of several matches the last one counts.

        Args:
            names: of the layers.
            operations: the kind of each, such as `linear` or `conv2d`.
            default: for layers that nothing matches.
        """
        chosen: list[Weights | None] = [default] * len(names)
        for key, override in self._entries.items():
            for index, (name, operation) in enumerate(zip(names, operations, strict=True)):
                if override.weights is not None and matches(key, [name], [operation]):
                    chosen[index] = None if override.weights == FLOAT else override.weights
        return chosen

    def activations(
        self, names: Iterable[str], operations: Iterable[str], default: Activations | None
    ) -> Activations | None:
        """The settings of one tensor; None where it stays in float. Of several matches the last one counts.

        Args:
            names: of the tensor, and of the layers that read it.
            operations: the kinds of operation that read it.
            default: where nothing matches.
        """
        chosen, names, operations = default, list(names), list(operations)
        for key, override in self._entries.items():
            if override.activations is not None and matches(key, names, operations):
                chosen = None if override.activations == FLOAT else override.activations
        return chosen

    def names_weights(self, name: str) -> bool:
        """Whether an exception for weights is for the layer of this name, and not for a glob or a kind of operation."""
        return name in self._entries and self._entries[name].weights is not None

    def names_activations(self, names: Iterable[str]) -> bool:
        """Whether an exception for activations is for one of these names."""
        return any(name in self._entries and self._entries[name].activations is not None for name in names)

    @property
    def quantizes_activations(self) -> bool:
        """Whether an exception quantizes activations, even where the stage leaves all others in float."""
        return any(isinstance(override.activations, Activations) for override in self._entries.values())

    def check(self, layers: Sequence[str], tensors: Sequence[str], operations: Iterable[str]) -> None:
        """Make sure that each key matches something.

        Raises:
            RecipeError: names the key that matches nothing, and the names that are nearest to it.
        """
        kinds = sorted(set(operations))
        for key, override in self._entries.items():
            named = [*layers, *(tensors if override.activations is not None else ())]
            if any(matches(key, [name], ()) for name in named) or matches(key, (), kinds):
                continue
            if key.startswith(KIND):
                raise RecipeError(
                    f"overrides: '{key}' matches no operation, so it would change nothing. Choose one of the kinds of "
                    f"operation of this network: {', '.join(kinds)}."
                )
            near = difflib.get_close_matches(key, named, n=3, cutoff=0.4) or list(named[:3])
            inside = [name for name in layers if name.startswith(key + ".")]
            hint = f" To name all {len(inside)} layers inside it, write '{key}.*'." if inside else ""
            raise RecipeError(
                f"overrides: '{key}' matches none of the {len(layers)} layers, so it would change nothing. Choose a "
                f"name of this network; the nearest are {', '.join(repr(name) for name in near)}.{hint}"
            )

    def __getitem__(self, name: str) -> Override:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        # The order counts, unlike in a dict: of several matches, the last one is taken.
        return isinstance(other, Overrides) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return repr(self._entries)


def matches(key: str, names: Iterable[str], operations: Iterable[str]) -> bool:
    """Whether a key of `overrides` is one of the names, a glob of one, or `op:` and one of the kinds of operation."""
    if key.startswith(KIND):
        return any(fnmatch.fnmatchcase(operation, key.removeprefix(KIND)) for operation in operations)
    return any(name == key or fnmatch.fnmatchcase(name, key) for name in names)


def granularity_name(granularity: Granularity) -> str:
    """The granularity in one word for tables: `per-tensor`, `per-channel`, `per-group 32`."""
    name = next(name for name, kind in GRANULARITIES.items() if type(granularity) is kind)
    return f"{name} {granularity.size}" if isinstance(granularity, PerGroup) else name


def _as_override(name: object, value: object) -> Override:
    if not isinstance(name, str):
        raise RecipeError(f"overrides: the key {name!r} is not text; it must be a layer's name such as 'features.0'.")
    match value:
        case Override():
            return value
        case Weights():
            return Override(weights=value)
        case Activations():
            return Override(activations=value)
        case None:
            return Override(weights=FLOAT)
    raise RecipeError(
        f"overrides['{name}'] is {value!r}; it must be an object such as Weights(bits=8) or Activations(bits=16), an "
        "Override of both, or None to leave the layer's weights in float."
    )
