"""The stage `Rewrite`: how the float network computes changes, what it computes does not.

    batch-norms are folded
    each method in turn  ──▶  the network runs on a few samples before and after, and must give the same outputs

A method that is not exact may change the outputs, but not their shapes; the report says by how much, and the
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
from roundwise.recipe.files import name_of
from roundwise.recipe.stages import Quantize, Rewrite, Stage
from roundwise.report import StageReport

MEASURED = 32
"""Samples on which rewrites measure the outputs of layers; each sample has many positions."""


def run_rewrite(stage: Rewrite, network: Network, run: Run, following: Sequence[Stage]) -> Network:
    """Fold batch-norms and apply the methods of the stage, or those that the next `Quantize` needs.

    Raises:
        ModelError: outputs changed by more than rounding errors do, or are not finite; names the method.
        RecipeError: a method measures samples and there are none.
    """
    start = time.perf_counter()
    graph = folded(network.graph)
    if not run.measures:
        _check_sound(_floats(graph, *run.example(graph.batch or 2)))
    quantize = next((one for one in following if isinstance(one, Quantize)), None)
    methods = stage.methods_before(quantize)
    notes: tuple[str, ...] = ()
    if methods:
        few = MEASURED if any(one.measures_moments for one in methods) else 2
        graph, notes = apply_rewrites(graph, methods, *run.example(graph.batch or few), real=run.measures)
    report = StageReport("rewrite", {"rewrite": time.perf_counter() - start}, notes)
    return dataclasses.replace(network, graph=graph, original=graph, reports=(*network.reports, report))


def folded(graph: Graph) -> Graph:
    """A captured graph in its form for inference: no dropout, one normal form, batch-norms folded; same outputs."""
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
    """Apply rewrites one after the other, and check that the network computes what it did.

    Args:
        graph: in normal form.
        rewrites: in order.
        args, kwargs: a few samples, as the model is called.
        real: whether they are samples, so that how far outputs move is worth telling.

    Returns:
        The new graph, and notes for the report.

    Raises:
        ModelError: outputs changed by more than rounding errors do; names the rewrite.
    """
    before, notes = _floats(graph, args, kwargs), []
    for one in rewrites:
        if one.measures_moments:
            if not real:
                raise RecipeError(f"{one!r} measures the outputs of layers on samples, and there are none.")
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
                    f"the float network's outputs moved by {max(changes):.2g} of their size; errors count from there"
                    if real
                    else "the float network's outputs moved; how far was not measured, without data"
                )
            before = after  # even if they hardly moved: that is not the next one's doing
        notes += [f"{word}: {'; '.join(filter(None, said))}"] if any(said) else []
    return graph, tuple(notes)


def _floats(graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The network's outputs, but for whole numbers: a class may change for the last digit of a logit."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(graph.module()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _check_sound(outputs: list[Tensor]) -> None:
    """Raise where the float network gives no numbers for random inputs; the −∞ of a mask is one."""
    broken = sum(int((output.isnan() | (output == math.inf)).sum()) for output in outputs)
    if broken:
        raise ModelError(
            f"the float network gives {broken} NaN or infinite outputs for random inputs. Check its weights, biases "
            "and batch-norm statistics; where float16 is too narrow, quantize the model in float32 or bfloat16."
        )


def _changes(before: list[Tensor], after: list[Tensor], word: str) -> list[float]:
    """Relative differences of the outputs; NaN where one has become infinite or NaN."""
    shapes = [[(list(t.shape), t.dtype) for t in tensors] for tensors in (before, after)]
    if shapes[0] != shapes[1]:
        raise ModelError(f"the rewrite '{word}' changed what the network returns, from {shapes[0]} to {shapes[1]}.")
    changes = []
    for was, now in zip(before, after, strict=True):
        finite = was.isfinite()  # the −∞ of a mask has no error
        energy = torch.linalg.vector_norm(was[finite].double())
        error = float(torch.linalg.vector_norm(now[finite].double() - was[finite].double()) / energy.clamp(min=1e-30))
        changes.append(error if torch.equal(finite, now.isfinite()) else math.nan)
    return changes


def _check_same(before: list[Tensor], changes: list[float], word: str) -> None:
    for number, (was, error) in enumerate(zip(before, changes, strict=True)):
        allowed = _allowed(was)
        if not error <= allowed:
            raise ModelError(
                f"the rewrite '{word}' changed what the float network computes: output {number} differs by {error:.2g} "
                f"of its size, where rounding errors of {was.dtype} explain no more than {allowed:.2g}. Leave it out "
                "of the recipe's rewrites for this network; if it is one of Roundwise's own, please report it."
            )


def _allowed(output: Tensor) -> float:
    """The relative difference that rounding errors explain."""
    return math.sqrt(torch.finfo(output.dtype).eps)
