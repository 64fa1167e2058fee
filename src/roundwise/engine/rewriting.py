"""Run the stage `Rewrite`: it changes how the float network computes its outputs, and keeps the outputs the same.

1. Fold batch-norms.
2. Apply each method in turn, and check that the outputs stay the same (`engine/apply_rewrites.py`).
3. Undo methods after which the quantized network is far worse than without them (`engine/undoing.py`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from roundwise.engine.apply_rewrites import Rewriter, float_outputs
from roundwise.engine.network import Network
from roundwise.engine.run import Run
from roundwise.engine.undoing import same, undo_harmful
from roundwise.errors import ModelError
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.drop_dropout import drop_dropout
from roundwise.graph.transforms.normalize import normalize
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.rewrites import ALWAYS
from roundwise.recipe.stages import Quantize, Rewrite, Stage
from roundwise.report import StageReport

MEASURED = 32
"""Rewrites measure the outputs of layers on 32 samples; each sample has many positions. More samples take longer."""


def run_rewrite(stage: Rewrite, network: Network, run: Run, following: Sequence[Stage]) -> Network:
    """Fold batch-norms and apply the methods of the stage, or those that the next `Quantize` needs.

    Raises:
        ModelError: outputs changed by more than rounding errors explain, or are not finite; names the method.
        RecipeError: a method needs samples and there are none.
    """
    start = time.perf_counter()
    graph = folded(network.graph)
    if not run.has_data:
        _check_sound(float_outputs(graph, *run.example(graph.batch or 2)))
    quantize = next((one for one in following if isinstance(one, Quantize)), None)
    methods = stage.methods_before(quantize)
    notes: tuple[str, ...] = ()
    if methods:
        few = MEASURED if run.has_data and any(one.measures_moments for one in methods) else 2
        rewriter = Rewriter(graph, *run.example(graph.batch or few), real=run.has_data)
        undoes = quantize is not None and stage.undo_harmful
        if quantize is not None and undoes and run.has_data:
            result = undo_harmful(rewriter, methods, quantize, run)
        else:
            result = rewriter.apply(methods)
        notes = result.notes
        if undoes and not run.has_data and not same(graph, result.graph):
            notes = (*notes, "without data, the quantized network was not compared with and without these rewrites")
        graph = result.graph
    report = StageReport("rewrite", {"rewrite": time.perf_counter() - start}, notes)
    if network.original is None or network.original is network.graph:
        return dataclasses.replace(network, graph=graph, original=graph, reports=(*network.reports, report))
    # A compressed network is still compared with the original one, of which only the outputs correspond now.
    return dataclasses.replace(network, graph=graph, counterparts={}, reports=(*network.reports, report))


def folded(graph: Graph) -> Graph:
    """The graph for inference: without dropout, in normal form, with batch-norms folded; its outputs are the same."""
    graph = normalize(drop_dropout(graph))
    for apply in ALWAYS:
        graph = apply(graph)
    return graph


def apply_rewrites(
    graph: Graph,
    rewrites: Sequence[GraphRewrite],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    real: bool = True,
) -> tuple[Graph, tuple[str, ...]]:
    """Apply rewrites one after the other, and check that the network's outputs stay the same.

    Args:
        graph: in normal form.
        rewrites: in order.
        args, kwargs: a few samples, as the model is called.
        real: whether these are samples; False for random numbers, for which the change of outputs means nothing.

    Returns:
        The new graph, and notes for the report.

    Raises:
        ModelError: outputs changed by more than rounding errors explain; names the rewrite.
        RecipeError: a rewrite needs samples and there are none.
    """
    result = Rewriter(graph, args, kwargs, real).apply(rewrites)
    return result.graph, result.notes


def _check_sound(outputs: list[Tensor]) -> None:
    """Raise if the float network gives NaN or +∞ for random inputs; −∞ is allowed, since masks use it."""
    broken = sum(int((output.isnan() | (output == math.inf)).sum()) for output in outputs)
    if broken:
        raise ModelError(
            f"the float network gives {broken} NaN or infinite outputs for random inputs. Check its weights, biases "
            "and batch-norm statistics. If values overflow float16, quantize the model in float32 or bfloat16."
        )
