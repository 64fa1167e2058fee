"""Options about compression: how much is left, by which methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import click

from roundwise.cli.options import ADVANCED, METHOD, choice, file, number, option
from roundwise.cli.parameters import memory, seed
from roundwise.cli.recipes import default, with_settings_of
from roundwise.methods.compression import COMPRESSION_METHODS, RATIO_CHOICES
from roundwise.recipe.compress import DEFAULT_METHODS, FACTORIZATIONS, Compress
from roundwise.recipe.files import name_of
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.stages import Rewrite


@final
@dataclass(frozen=True)
class CompressOptions:
    """The options that shape a recipe with a stage `Compress`; None, or empty, where the user gave none."""

    macs: float | None = option(METHOD, "Share of the multiplications that is left.", type=float, metavar="SHARE")
    parameters: float | None = option(
        METHOD, "Instead: share of the parameters that is left.", type=float, metavar="SHARE"
    )
    latency: float | None = option(
        METHOD, "Instead: share of the time that is left, measured in ONNX Runtime.", type=float, metavar="SHARE"
    )
    methods: tuple[str, ...] = choice(
        METHOD,
        "A way to make layers smaller; repeat it to let each layer take what suits it best."
        + default(", ".join(name_of(method, COMPRESSION_METHODS) for method in DEFAULT_METHODS)),
        COMPRESSION_METHODS,
        "--method",
        default=(),
    )
    keep: tuple[str, ...] = option(
        METHOD, "A layer that stays as it is; a name or a glob. Repeatable.", default=(), metavar="LAYER"
    )
    settings: tuple[str, ...] = option(
        METHOD,
        "A setting of a method, such as spatial-svd.rounds=5, or choice.NAME. Repeatable. `roundwise methods METHOD` "
        "lists them.",
        "--set",
        default=(),
        metavar="NAME=VALUE",
    )
    recipe: Path | None = file(METHOD, "A recipe in TOML with a stage compress, which the other options change.")
    choice: str | None = choice(
        ADVANCED, "How the sizes of layers are chosen." + default("output-error"), RATIO_CHOICES
    )
    multiple: int | None = number(ADVANCED, "Ranks are multiples of N." + default("8"))
    seed: int | None = option(ADVANCED, "Of all random choices." + default(Recipe().seed), type=seed, metavar="N")
    batch_size: int | None = number(ADVANCED, "Samples at a time." + default("32; on a CPU fewer if they are large"))
    memory_budget: int | None = option(
        ADVANCED,
        "For activations; the rest goes to disk." + default("half of free memory"),
        type=memory,
        metavar="SIZE",
    )

    def as_recipe(self, *, data_free: bool = False) -> Recipe:
        """The recipe file, or else the default recipe, changed as the options say.

        Args:
            data_free: whether there are no samples, so that no channels are removed by default.

        Raises:
            click.UsageError: no budget.
            RecipeError: an option or a line of the file makes no sense.
        """
        budgets = {"macs": self.macs, "parameters": self.parameters, "latency": self.latency}
        given: dict[str, Any] = budgets if any(share is not None for share in budgets.values()) else {}
        if self.recipe is None and not given:
            raise click.UsageError(
                "Missing option '--macs', '--parameters' or '--latency': how much of the network shall be left? "
                "Give for instance --macs 0.5."
            )
        if self.methods:
            given["methods"] = tuple(COMPRESSION_METHODS[name]() for name in self.methods)
        if self.choice is not None:
            given["choice"] = RATIO_CHOICES[self.choice]()
        given |= {"multiple": self.multiple} if self.multiple is not None else {}
        given |= {"keep": self.keep} if self.keep else {}
        if self.recipe is None:
            given = ({"methods": FACTORIZATIONS} if data_free else {}) | given
            recipe = Recipe((Rewrite(), Compress(**given)))
        else:
            recipe = Recipe.from_toml(self.recipe)
            recipe.stage(Compress)  # raises if there is none
            recipe = recipe.with_settings(Compress, **given) if given else recipe
        run = {"seed": self.seed, "batch_size": self.batch_size, "memory_budget": self.memory_budget}
        recipe = Recipe.from_dict(recipe.as_dict() | {name: value for name, value in run.items() if value is not None})
        return with_settings_of(recipe, self.settings)
