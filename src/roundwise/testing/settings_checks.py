"""Checks of every method as a set of settings, so that recipes, files and the command line can handle it.

A check takes the class of the method.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from roundwise.errors import RecipeError
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.methods.compressing import CompressionMethod, RatioChoice
from roundwise.methods.compression import COMPRESSION_METHODS, RATIO_CHOICES
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.interfaces import ActivationRanges, Correction, GraphRewrite, RoundingSolver
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.recipe.compress import Compress
from roundwise.recipe.recipe import Recipe
from roundwise.recipe.settings import Activations, Weights
from roundwise.recipe.stages import Quantize, Rewrite
from roundwise.statistics import Statistic, ValueStatistic
from roundwise.testing.requirement import checks_in, require

M = TypeVar("M")


def quick(kind: type[M], iterations: int = 5) -> M:
    """A method with its defaults, but with at most the given number of `iterations` or `moves`, where it has these.

    So slow methods are tested in little time, and a new one only has to use one of these names.
    """
    method = kind()
    slow = {name: iterations for name in ("iterations", "moves") if getattr(method, name, 0) > iterations}
    return dataclasses.replace(method, **slow) if slow else method  # type: ignore[type-var]


def check_is_a_frozen_dataclass(kind: type) -> None:
    """Its settings cannot be changed, methods with the same settings are equal, and it is final."""
    parameters = getattr(kind, "__dataclass_params__", None)
    require(parameters is not None and parameters.frozen, f"{kind.__name__} is not a frozen dataclass")
    require(getattr(kind, "__final__", False), f"{kind.__name__} is not marked final")
    require(kind() == kind() and hash(kind()) == hash(kind()), f"two {kind.__name__}() are not equal")


def check_says_what_it_needs(kind: type) -> None:
    """`needs` is a statistic, where a kind has it; the documentation begins with a sentence and names a source.

    Rewrites and methods of compression declare no statistic, and choices of ratios need name no source.
    """
    needs = getattr(kind, "needs", None)
    known = isinstance(needs, type) and issubclass(needs, Statistic | ValueStatistic)
    exempt = issubclass(kind, GraphRewrite | CompressionMethod | RatioChoice)
    require(exempt or known, f"{kind.__name__}.needs is {needs!r}")
    text = (kind.__doc__ or "").strip()
    require(text.partition("\n")[0].endswith("."), f"{kind.__name__}'s documentation does not begin with a sentence")
    require(issubclass(kind, RatioChoice) or "References:" in text, f"{kind.__name__} has no 'References:'")


def check_survives_a_recipe_file(kind: type) -> None:
    """A method in a table comes back unchanged from plain data through JSON, also with any one setting changed."""
    tables: list[Mapping[str, type]] = [REWRITES, RANGE_ESTIMATORS, ROUNDING_SOLVERS, CORRECTIONS, ACTIVATION_RANGES]
    tables += [COMPRESSION_METHODS, RATIO_CHOICES]
    if not any(kind in table.values() for table in tables):
        return
    for method in (kind(), *_changed(kind)):
        recipe = _recipe(method)
        back = Recipe.from_dict(json.loads(json.dumps(recipe.as_dict(), allow_nan=False)))
        require(back == recipe, f"{method} came back as {back}")


def check_refuses_values_of_a_wrong_type(kind: type) -> None:
    """Text, a list or NaN instead of a number is a `RecipeError` that names the setting."""
    for field in dataclasses.fields(kind):
        wrong: list[Any] = [["4"], object()]
        if type(field.default) in (int, float, bool):
            wrong += ["4", float("nan"), float("inf"), None]
        for value in wrong:
            try:
                kind(**{field.name: value})
            except RecipeError as error:
                require(field.name in str(error), f"{kind.__name__}({field.name}={value!r}) says only: {error}")
            else:
                call = f"{kind.__name__}({field.name}={value!r})"
                require(False, f"{call} was accepted; see `check_types` in `methods/settings.py`")


SETTINGS_CHECKS: tuple[Callable[[type], None], ...] = checks_in(globals())


def _changed(kind: type) -> Iterator[Any]:
    """The method with one setting changed, for each setting that allows the change."""
    for field in dataclasses.fields(kind):
        other: Any = None
        match field.default:
            case bool(default):
                other = not default
            case int(default):
                other = default + 1
            case float(default):
                other = default * 0.99 + 1e-9
        if other is not None:
            try:
                yield kind(**{field.name: other})
            except RecipeError:
                continue


def _recipe(method: Any) -> Recipe:
    if isinstance(method, RoundingSolver):
        return Recipe((Quantize(rounding=method),))
    if isinstance(method, ActivationRanges):
        return Recipe((Quantize(activations=Activations(ranges=method)),))
    if isinstance(method, Correction):
        return Recipe((Quantize(correction=method),))
    if isinstance(method, GraphRewrite):
        return Recipe((Rewrite((method,)),))
    if isinstance(method, CompressionMethod):
        return Recipe((Compress(macs=0.5, methods=(method,)),))
    if isinstance(method, RatioChoice):
        return Recipe((Compress(macs=0.5, choice=method),))
    return Recipe((Quantize(Weights(ranges=method)),))
