"""What the user wants: a sequence of stages and a seed. As Python, as a dict, as TOML.

seed = 0
target = "ort-cpu"                          # what the network is to run on; without this line, no runtime in particular

[[stages]]
stage = "rewrite"                           # of the float network; without `methods`, what the weights need
methods = [{ method = "outlier-channel-splitting", ratio = 0.05 }]

[[stages]]
stage = "quantize"
rounding = { method = "adaround", iterations = 10000 }
correction = { method = "empirical-bias" }  # without this line biases are left to the rounding method

[stages.weights]
bits = 4
granularity = { kind = "per-channel" }
ranges = { method = "weight-mse" }

[stages.activations]                        # without this table they stay in float
bits = 8
ranges = { method = "mse" }

[stages.overrides."features.0.*".weights]   # a layer's name or a glob, in quotes where it has dots; the last counts
bits = 8                                    # what is left out is as in [stages.weights]

[stages.overrides.classifier]
weights = "float"
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import tomli_w

from roundwise.errors import RecipeError
from roundwise.files import named, replacing
from roundwise.methods.corrections import AnalyticBias
from roundwise.methods.rewrites import CrossLayerEqualization, HighBiasAbsorption
from roundwise.methods.rounding import Nearest
from roundwise.recipe.checks import check_whole_number
from roundwise.recipe.compress import Compress
from roundwise.recipe.files import from_plain, methods_of_ones_own, stage_with, to_plain
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.limits import check_size, parse_toml, read_text
from roundwise.recipe.settings import Activations, Weights
from roundwise.recipe.stages import STAGES, Quantize, Rewrite, Stage
from roundwise.targets import TARGETS
from roundwise.wording import did_you_mean

S = TypeVar("S", Compress, Rewrite, Quantize, Finetune)


@final
@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run does. It is data; what is code is an argument of the call.

    Args:
        stages: run in order. Where a `Quantize` comes first, or follows `Compress` and no `Rewrite` comes before it,
            `Rewrite()` is put before it. There is one `Quantize` at most, after all `Compress` and `Rewrite`.
        seed: of every random choice, any int; each layer has a generator of its own, seeded by (seed, layer name).
        batch_size: samples that run through the network at a time. Results may differ in the last digits between
            batch sizes, never with how the samples were handed over. None is 32, or on a CPU fewer where samples are
            large: 6 images of 224 × 224.
        memory_budget: bytes of activations kept in memory between layers; what exceeds it goes to temporary files.
            None takes half of what is free when the run starts.
        target: the name of what the network is to run on, such as "tensorrt" (the page "Targets" lists them). What it
            cannot hold is refused before the run; what the recipe leaves open is chosen for it. None is for no runtime
            in particular.

    Raises:
        RecipeError: a setting is out of range or of the wrong type, or the stages do not follow from each other.

    Example:
        >>> overrides = {"classifier": Weights(bits=8), "stem.*": None}
        >>> recipe = Recipe([Quantize(Weights(bits=3), overrides=overrides)], seed=1)
        >>> [type(stage).__name__ for stage in recipe.stages]
        ['Rewrite', 'Quantize']
        >>> Recipe.from_dict(recipe.as_dict()) == recipe
        True
    """

    stages: Sequence[Stage] = (Rewrite(), Quantize())
    seed: int = 0
    batch_size: int | None = None
    memory_budget: int | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        kinds = " or ".join(f"{kind.__name__}(…)" for kind in STAGES.values())
        if not isinstance(self.stages, list | tuple) or not self.stages:
            raise RecipeError(f"stages is {self.stages!r}; it must be a tuple of at least one stage, {kinds}.")
        for number, stage in enumerate(self.stages):
            if not isinstance(stage, Stage):
                raise RecipeError(f"stages[{number}] is {stage!r}; it must be a stage, {kinds}.{stage_with(stage)}")
        _check_order(self.stages)
        object.__setattr__(self, "stages", _completed(self.stages))
        check_whole_number("seed", self.seed)
        if self.batch_size is not None:
            check_whole_number("batch_size", self.batch_size, at_least=1)
        if self.memory_budget is not None:
            check_whole_number("memory_budget", self.memory_budget, at_least=0)
        if self.target is not None and self.target not in list(TARGETS):
            raise RecipeError(
                f"target={self.target!r}: there is no such target. Choose one of {', '.join(TARGETS)}."
                f"{did_you_mean(self.target, TARGETS)}"
            )

    @classmethod
    def data_free(cls) -> Recipe:
        """What needs no data: 8-bit weights rounded to nearest, after equalization, absorption and correction."""
        rewrites = Rewrite((CrossLayerEqualization(), HighBiasAbsorption()))
        return cls((rewrites, Quantize(Weights(bits=8), Nearest(), correction=AnalyticBias())))

    @classmethod
    def of(cls, request: object) -> Recipe:
        """A recipe from what a caller may give in its place: a recipe, one stage, or a sequence of stages.

        Raises:
            RecipeError: it is none of these.
        """
        if isinstance(request, Recipe):
            return request
        if isinstance(request, Stage):
            return cls((request,))
        if isinstance(request, list | tuple):
            return cls(request)
        hint = stage_with(request)
        if isinstance(request, str | Path):
            hint = f" To read a file, write Recipe.from_toml({str(request)!r})."
        elif isinstance(request, Mapping):
            hint = " A dict becomes a recipe by Recipe.from_dict."
        found = (
            f"is the class {request.__name__}" if isinstance(request, type) else f"has type {type(request).__name__}"
        )
        raise RecipeError(f"the recipe {found}; it must be a Recipe, or a stage such as Quantize(…).{hint}")

    def for_target(self, target: str | None = None) -> Recipe:
        """The recipe with a target, and with the settings that it left to the target.

        Args:
            target: its name; None takes the target that the recipe has.

        Raises:
            RecipeError: there is no such target, the recipe has another, or the target cannot hold a setting.

        Example:
            >>> recipe = Recipe.of(Quantize(activations=Activations())).for_target("tensorrt")
            >>> recipe.stage(Quantize).activations.symmetric
            True
        """
        if target is not None and self.target not in (None, target):
            raise RecipeError(
                f"target={target!r}, but the recipe has the target {self.target!r}. Give one of them, or give the "
                "recipe the other target."
            )
        recipe = self if target is None else dataclasses.replace(self, target=target)
        if recipe.target is None:
            return recipe
        chosen = TARGETS[recipe.target]
        if not chosen.activation_zero_points:
            stages = [_with_signed_activations(one) if isinstance(one, Quantize) else one for one in recipe.stages]
            recipe = dataclasses.replace(recipe, stages=stages)
        chosen.check(recipe)
        return recipe

    def stage(self, kind: type[S]) -> S:
        """The first stage of a kind.

        Raises:
            RecipeError: there is none, or this is no kind of stage.
        """
        _check_kind("stage", kind)
        for stage in self.stages:
            if isinstance(stage, kind):
                return stage
        kinds = ", ".join(type(stage).__name__ for stage in self.stages)
        raise RecipeError(f"the recipe has no stage {kind.__name__}; it has {kinds}. Add one to its stages.")

    def with_settings(self, kind: type[Stage], **settings: Any) -> Recipe:
        """The same recipe with other settings in its stages of one kind.

        Raises:
            RecipeError: the recipe has no such stage, the stage has no such setting, or a value is not possible.

        Example:
            >>> three = Recipe().with_settings(Quantize, weights=Weights(bits=3))
            >>> three.stage(Quantize).weights.bits
            3
        """
        _check_kind("with_settings", kind)
        stage = self.stage(kind)  # type: ignore[type-var]  # raises if there is none
        known = [setting.name for setting in dataclasses.fields(kind)]
        for name in settings:
            if name not in known:
                raise RecipeError(
                    f"with_settings({kind.__name__}, {name}=…): {kind.__name__} has no setting {name!r}. Choose one of "
                    f"{', '.join(known)}.{_place_of(name, stage) or did_you_mean(name, known)}"
                )
        stages = [dataclasses.replace(one, **settings) if type(one) is kind else one for one in self.stages]
        return dataclasses.replace(self, stages=stages)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with stages and methods by their names in the tables; without entries that are None."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of `as_dict`; anything left out takes its default, or in an override its value in `weights`.

        Raises:
            RecipeError: a name or a value is unknown.
        """
        check_size(data)
        recipe: Recipe = from_plain(data, cls, "recipe")
        return recipe

    def as_toml(self) -> str:
        """The recipe as the text of a TOML file laid out as above, with every setting.

        Raises:
            RecipeError: a method is of your own making, and so has no name that a file could hold.
        """
        for method in methods_of_ones_own(self):
            raise RecipeError(
                f"{method!r} is a method of your own. A TOML file could only name it, not hold its code. Keep this "
                "recipe in Python, or put one of Roundwise's own methods in its place."
            )
        return tomli_w.dumps(self.as_dict())

    def to_toml(self, path: str | Path) -> None:
        """Write `as_toml` to a file, which appears complete or not at all.

        Raises:
            RecipeError: a method is of your own making, and so has no name that a file could hold; or the file cannot
                be written.
        """
        text = self.as_toml()
        with replacing(named(path, RecipeError), RecipeError) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe from a TOML file laid out as above.

        Raises:
            RecipeError: the file cannot be read, is too large, is not TOML, or a name or value in it is unknown.
        """
        path = named(path, RecipeError)
        try:
            text = read_text(path)
        except UnicodeDecodeError as error:
            raise RecipeError(f"{path} is not a TOML file: {error}. Give a file of text in UTF-8.") from error
        try:
            return cls.from_dict(parse_toml(text))
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(
                f"{path} is not a TOML file: {error}. Repair that place, or start from the file that "
                "Recipe().to_toml(path) writes: it has tables such as [[stages]], with all settings."
            ) from error
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error


def _with_signed_activations(stage: Quantize) -> Quantize:
    """The stage with signed codes for all activations whose settings leave it open."""

    def signed(settings: Any) -> Any:
        is_open = isinstance(settings, Activations) and settings.symmetric is None
        return dataclasses.replace(settings, symmetric=True) if is_open else settings

    overrides = {
        name: dataclasses.replace(override, activations=signed(override.activations))
        for name, override in stage.exceptions.items()
    }
    return dataclasses.replace(stage, activations=signed(stage.activations), overrides=overrides)


def _completed(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, with a `Rewrite` before `Quantize` where that needs one."""
    place = next((number for number, stage in enumerate(stages) if isinstance(stage, Quantize)), None)
    if place is None:
        return tuple(stages)
    before = [type(stage) for stage in stages[:place]]
    if place == 0 or (Compress in before and Rewrite not in before):
        return (*stages[:place], Rewrite(), *stages[place:])
    return tuple(stages)


def _check_order(stages: Sequence[Stage]) -> None:
    """Raise where a stage after `Quantize` would undo or ignore what that has chosen."""
    first = next((number for number, stage in enumerate(stages) if isinstance(stage, Quantize)), len(stages))
    for number, stage in enumerate(stages):
        if number > first and isinstance(stage, Quantize):
            raise RecipeError(
                f"stages[{number}] is a second Quantize after stages[{first}]: it would choose all codes anew, and the "
                "first would count for nothing. Give all settings in one Quantize; what is different for some layers "
                "goes into its overrides."
            )
        if number > first and isinstance(stage, Rewrite | Compress):
            raise RecipeError(
                f"stages[{number}] is a {type(stage).__name__} after the Quantize in stages[{first}]: it changes float "
                "weights, whose codes have been chosen by then. Put it before Quantize."
            )


def _check_kind(method: str, kind: object) -> None:
    """Raise unless this is the class of a stage, and say which class was probably meant."""
    kinds = {stage.__name__: stage for stage in STAGES.values()}
    if isinstance(kind, type) and kind in kinds.values():
        return
    named = kind if isinstance(kind, str) else getattr(kind, "__name__", type(kind).__name__)
    meant = next((name for name, one in kinds.items() if isinstance(kind, one) or named.lower() == name.lower()), None)
    hint = f" Write {method}({meant}, …)." if meant else ""
    if kind in (Weights, Activations):
        setting = named.lower()
        hint = f" {named} are a setting of Quantize: write with_settings(Quantize, {setting}={named}(…))."
    raise RecipeError(
        f"{method}({named}): this is no kind of stage. Give a class of stages, {' or '.join(kinds)}.{hint}"
    )


def _place_of(name: str, stage: Stage) -> str:
    """Where a setting belongs that an object in the stage has, and not the stage itself; or nothing."""
    parts = {setting.name: getattr(stage, setting.name) for setting in dataclasses.fields(stage)}
    if isinstance(stage, Quantize):
        parts["activations"] = stage.activations or Activations()
    for setting, part in parts.items():
        if dataclasses.is_dataclass(part) and name in {field.name for field in dataclasses.fields(part)}:
            kind = type(part).__name__
            return f" It is a setting of {kind}: {setting}={kind}({name}=…)."
    return ""
