"""What the user wants: a sequence of stages and a seed. As Python, as a dict, as TOML.

seed = 0

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
from roundwise.methods.corrections import AnalyticBias
from roundwise.methods.rewrites import CrossLayerEqualization, HighBiasAbsorption
from roundwise.methods.rounding import Nearest
from roundwise.recipe.checks import check_whole_number
from roundwise.recipe.files import from_plain, methods_of_ones_own, to_plain
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.settings import Weights
from roundwise.recipe.stages import STAGES, Quantize, Rewrite, Stage

S = TypeVar("S", Rewrite, Quantize, Finetune)


@final
@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run does. It is data; what is code is an argument of the call.

    Args:
        stages: run in order. Where a `Quantize` comes first, `Rewrite()` is put before it.
        seed: of every random choice, any int; each layer has a generator of its own, seeded by (seed, layer name).
        batch_size: samples that run through the network at a time. Results may differ in the last digits between
            batch sizes, never with how the samples were handed over. None is 32, or on a CPU fewer where samples are
            large: 6 images of 224 × 224.
        memory_budget: bytes of activations kept in memory between layers; what exceeds it goes to temporary files.
            None takes half of what is free when the run starts.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

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

    def __post_init__(self) -> None:
        kinds = " or ".join(f"{kind.__name__}(…)" for kind in STAGES.values())
        if not isinstance(self.stages, list | tuple) or not self.stages:
            raise RecipeError(f"stages is {self.stages!r}; it must be a tuple of at least one stage, {kinds}.")
        for number, stage in enumerate(self.stages):
            if not isinstance(stage, Stage):
                raise RecipeError(f"stages[{number}] is {stage!r}; it must be a stage, {kinds}.")
        stages = (Rewrite(), *self.stages) if isinstance(self.stages[0], Quantize) else tuple(self.stages)
        object.__setattr__(self, "stages", stages)
        check_whole_number("seed", self.seed)
        if self.batch_size is not None:
            check_whole_number("batch_size", self.batch_size, at_least=1)
        if self.memory_budget is not None:
            check_whole_number("memory_budget", self.memory_budget, at_least=0)

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
        raise RecipeError(
            f"the recipe is a {type(request).__name__}; it must be a Recipe, or a stage such as Quantize(…). (A dict "
            "becomes a recipe by Recipe.from_dict.)"
        )

    def stage(self, kind: type[S]) -> S:
        """The first stage of a kind.

        Raises:
            RecipeError: there is none.
        """
        for stage in self.stages:
            if isinstance(stage, kind):
                return stage
        kinds = ", ".join(type(stage).__name__ for stage in self.stages)
        raise RecipeError(f"the recipe has no stage {kind.__name__}; it has {kinds}. Add one to its stages.")

    def with_settings(self, kind: type[Stage], **settings: Any) -> Recipe:
        """The same recipe with other settings in its stages of one kind.

        Example:
            >>> three = Recipe().with_settings(Quantize, weights=Weights(bits=3))
            >>> three.stage(Quantize).weights.bits
            3
        """
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
            # Some editors begin UTF-8 files with a byte-order mark, which is not TOML.
            return cls.from_dict(tomllib.loads(Path(path).read_text(encoding="utf-8-sig")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(
                f"{path} is not a TOML file: {error}. Repair that place, or start from the file that "
                "Recipe().to_toml(path) writes: it has tables such as [[stages]], with all settings."
            ) from error
        except OSError as error:
            raise RecipeError(f"cannot read the recipe {path}: {error.strerror}. Check the path.") from error
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error
