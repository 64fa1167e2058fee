"""Run the stage `Rewrite`: it changes how the float network computes its outputs, and keeps the outputs the same.

    1. Fold batch-norms.
    2. Apply each method in turn. Run the network on a few samples before and after it: the outputs must be the same.

A method that is not exact may change the outputs, but not their shapes. The report says how much they changed, and the
methods after it are compared with the new outputs.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.engine.network import Network
from roundwise.engine.run import Run
from roundwise.errors import ModelError, RecipeError
from roundwise.graph.analysis.moments import with_measured_moments
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.drop_dropout import drop_dropout
from roundwise.graph.transforms.normalize import normalize
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.rewrites import ALWAYS, REWRITES
from roundwise.numerics.output_error import ErrorSums
from roundwise.recipe.files import name_of
from roundwise.recipe.stages import Quantize, Rewrite, Stage
from roundwise.report import StageReport

_WAY_OUT = (
    "Leave it out of the methods of `Rewrite` for this network; if it is one of Roundwise's own, please report it."
)
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
        _check_sound(_floats(graph, *run.example(graph.batch or 2)))
    quantize = next((one for one in following if isinstance(one, Quantize)), None)
    methods = stage.methods_before(quantize)
    notes: tuple[str, ...] = ()
    if methods:
        few = MEASURED if any(one.measures_moments for one in methods) else 2
        graph, notes = apply_rewrites(graph, methods, *run.example(graph.batch or few), real=run.has_data)
    report = StageReport("rewrite", {"rewrite": time.perf_counter() - start}, notes)
    return dataclasses.replace(network, graph=graph, original=graph, reports=(*network.reports, report))


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
    before, notes = _floats(graph, args, kwargs), []
    for one in rewrites:
        if one.measures_moments:
            if not real:
                raise RecipeError(
                    f"{one!r} measures the outputs of layers on samples, and there are none. Give calibration samples "
                    "in the place of `DataFree`, or take settings that measure nothing."
                )
            graph = with_measured_moments(graph, args, kwargs)
        word, said = name_of(one, REWRITES), [one.note(graph)]
        graph = one.apply(graph)
        after = _floats(graph, args, kwargs)
        changes = _changes(before, after, word)
        if one.exact:
            _check_same(before, changes, word)
        else:
            if not all(change <= _allowed(was) for was, change in zip(before, changes, strict=True)):
                said.append(
                    f"changed the float network's outputs, by a relative {max(changes):.2g}; errors in this report are "
                    "measured against the changed outputs"
                    if real
                    else "changed the float network's outputs; without data it was not measured by how much"
                )
            before = after  # so that the next rewrite is not held responsible for this change
        notes += [f"{word}: {'; '.join(filter(None, said))}"] if any(said) else []
    return graph, tuple(notes)


def _floats(graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The floating-point outputs. Outputs of whole numbers may change: a class follows the last digit of a logit."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(graph.module()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _check_sound(outputs: list[Tensor]) -> None:
    """Raise if the float network gives NaN or +∞ for random inputs; −∞ is allowed, since masks use it."""
    broken = sum(int((output.isnan() | (output == math.inf)).sum()) for output in outputs)
    if broken:
        raise ModelError(
            f"the float network gives {broken} NaN or infinite outputs for random inputs. Check its weights, biases "
            "and batch-norm statistics. If values overflow float16, quantize the model in float32 or bfloat16."
        )


def _changes(before: list[Tensor], after: list[Tensor], word: str) -> list[float]:
    """The relative difference of each output; NaN if a finite value has become infinite or NaN."""
    shapes = [[(list(t.shape), t.dtype) for t in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"the rewrite '{word}' changed the shapes or dtypes of the network's outputs, from {shapes[0]} to "
            f"{shapes[1]}; a rewrite must keep them. {_WAY_OUT}"
        )
    changes = []
    for was, now in zip(before, after, strict=True):
        sums = ErrorSums()
        sums.add(now, was)
        found = sums.result()
        changes.append(math.nan if found.apart else math.sqrt(found.error))
    return changes


def _check_same(before: list[Tensor], changes: list[float], word: str) -> None:
    for number, (was, error) in enumerate(zip(before, changes, strict=True)):
        allowed = _allowed(was)
        if not error <= allowed:
            raise ModelError(
                f"the rewrite '{word}' changed what the float network computes: output {number} differs by {error:.2g} "
                f"of its size, where rounding errors of {was.dtype} explain no more than {allowed:.2g}. {_WAY_OUT}"
            )


def _allowed(output: Tensor) -> float:
    """The largest relative difference that rounding errors can explain."""
    return math.sqrt(torch.finfo(output.dtype).eps)
