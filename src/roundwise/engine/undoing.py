"""Undo rewrites after which the quantized network is far worse than without them.

A rewrite keeps what the float network computes, or nearly so, but it may spread the values of a tensor so widely that a
grid has no steps left for most of them. So the stage `Rewrite` tries the next `Quantize` out:

    1. Quantize the network without and with the rewrites, weights rounded to nearest, on a few samples.
    2. If the error with the rewrites is far larger, leave out the rewrite without which the error is smallest.
    3. Repeat step 2 with those that are left, until the error is not far larger or no rewrite is left.

The error is that of the network's outputs, against the outputs before the rewrites. It is measured on the last samples:
what a rewrite measures, it measures on the first. Rounding to nearest needs no samples, but ranges of activations do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from roundwise.engine.apply_rewrites import Rewriter, Rewritten
from roundwise.engine.quantizing import nearest_error
from roundwise.engine.run import Run
from roundwise.errors import CalibrationError, ModelError, RecipeError
from roundwise.events import PassStarted
from roundwise.graph.graph import Graph
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.rewrites import REWRITES
from roundwise.recipe.files import name_of
from roundwise.recipe.stages import Quantize
from roundwise.wording import number_of

SAMPLES = 16
"""Errors are measured on 16 samples, or on the few more that fill a batch. More samples take longer."""

FAR_WORSE = 2.0
"""An error is far larger if it is more than 2 times the other one, and more than `MARGIN` above it. With larger
numbers, rewrites that do more harm are kept."""

MARGIN = 0.05
"""A part of the energy of the outputs. Below it, an error is small, however much larger than another one."""


def undo_harmful(rewriter: Rewriter, methods: Sequence[GraphRewrite], quantize: Quantize, run: Run) -> Rewritten:
    """The graph after the rewrites that do no harm, with a note about each that was undone.

    Args:
        rewriter: applies rewrites to the network.
        methods: the rewrites, in order.
        quantize: the stage that the network is rewritten for.
        run: with samples.
    """
    now = rewriter.apply(methods)
    if same(rewriter.graph, now.graph):
        return now
    run.progress(PassStarted(f"trying out the quantized network with and without {number_of(len(methods), 'rewrite')}"))
    without, error = _error(Rewritten(rewriter.graph, ()), quantize, run), _error(now, quantize, run)
    undone: list[str] = []
    while methods and far_worse(error, without):
        fewer = [[*methods[:i], *methods[i + 1 :]] for i in range(len(methods))]
        tried = [(one, rewriter.apply(one)) for one in fewer]
        errors = [without if not one else _error(result, quantize, run) for one, result in tried]
        best = min(range(len(fewer)), key=errors.__getitem__)
        undone.append(
            f"{name_of(methods[best], REWRITES)}: undone, since the quantized network was far worse with it: the "
            f"relative error of its outputs was {error:.2g} instead of {errors[best]:.2g}, with weights rounded to "
            f"nearest; Rewrite(…, undo_harmful=False) keeps it"
        )
        (methods, now), error = tried[best], errors[best]
    return dataclasses.replace(now, notes=(*now.notes, *undone))


def far_worse(error: float, other: float) -> bool:
    """Whether a relative squared error is far larger than another one; both may be infinite."""
    return error > FAR_WORSE * other and error > other + MARGIN


def _error(rewritten: Rewritten, quantize: Quantize, run: Run) -> float:
    """The relative squared error of the outputs, against the outputs before the rewrites; infinite if there is none.

    The error is measured against the outputs after the rewrites. Their change is added, by the triangle inequality.
    """
    try:
        error = nearest_error(rewritten.graph, quantize, run, SAMPLES)
    except (CalibrationError, ModelError, RecipeError):
        return math.inf  # where the network of the recipe cannot be quantized either, its own run says why
    total = (math.sqrt(error) + rewritten.change) ** 2
    return math.inf if math.isnan(total) else total


def same(graph: Graph, other: Graph) -> bool:
    """Whether two graphs have the same operations and read the same tensors."""
    return (
        str(graph.operations) == str(other.operations)
        and graph.constants.keys() == other.constants.keys()
        and all(value is other.constants[name] for name, value in graph.constants.items())
    )
