"""Recipes of one `Quantize` stage in one call, as most tests need them."""

from typing import Any

import roundwise as rw

STAGE = ("weights", "rounding", "activations", "correction", "overrides")


def quantizing(
    weights: Any = None, rounding: Any = None, overrides: Any = None, *, rewrites: Any = None, **settings: Any
) -> rw.Recipe:
    """A recipe that rewrites and quantizes; settings of the stage and of the recipe, side by side."""
    given = {"weights": weights, "rounding": rounding, "overrides": overrides}
    settings |= {name: value for name, value in given.items() if value is not None}
    stage = {name: settings.pop(name) for name in STAGE if name in settings}
    return rw.Recipe((rw.Rewrite(rewrites), rw.Quantize(**stage)), **settings)
