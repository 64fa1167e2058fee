"""Apply rewrites one after the other, and check on a few samples that the network's outputs stay the same.

A rewrite that is not exact may change the outputs, but not their shapes. The report says how much they changed, and the
rewrites after it are compared with the new outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.errors import ModelError, RecipeError
from roundwise.graph.analysis.moments import with_measured_moments
from roundwise.graph.graph import Graph
from roundwise.methods.interfaces import GraphRewrite
from roundwise.methods.rewrites import REWRITES
from roundwise.numerics.output_error import compare
from roundwise.recipe.files import name_of

_WAY_OUT = (
    "Leave it out of the methods of `Rewrite` for this network; if it is one of Roundwise's own, please report it."
)


@final
@dataclass(frozen=True, eq=False)
class Rewritten:
    """A graph after some rewrites.

    Attributes:
        graph: the graph.
        notes: of the rewrites, for the report.
        change: the relative difference of the float network's outputs, ‖y − y′‖/‖y‖; the largest of all outputs.
    """

    graph: Graph
    notes: tuple[str, ...]
    change: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class Rewriter:
    """A graph, and the samples on which its rewrites are checked.

    Attributes:
        graph: in normal form.
        args, kwargs: a few samples, as the model is called.
        real: whether these are samples; False for random numbers, for which the change of outputs means nothing.
    """

    graph: Graph
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    real: bool

    def apply(self, rewrites: Sequence[GraphRewrite]) -> Rewritten:
        """The graph after rewrites, in order.

        Raises:
            ModelError: outputs changed by more than rounding errors explain; names the rewrite.
            RecipeError: a rewrite needs samples and there are none.
        """
        graph, notes = self.graph, list[str]()
        first = before = self._outputs(graph)
        for one in rewrites:
            known = graph.moments.keys()
            graph = self._with_moments(graph, one)
            added = set() if one.measures_moments is True else graph.moments.keys() - known
            word, said = name_of(one, REWRITES), [one.note(graph)]
            graph = one.apply(graph)
            graph.forget_moments(added)
            after = self._outputs(graph)
            changes = _changes(before, after, word)
            if one.exact:
                _check_same(before, changes, word)
            else:
                if not all(change <= _allowed(was) for was, change in zip(before, changes, strict=True)):
                    said.append(
                        f"changed the float network's outputs, by a relative {max(changes):.2g}; errors in this report "
                        "are measured against the changed outputs"
                        if self.real
                        else "changed the float network's outputs; without data it was not measured by how much"
                    )
                before = after  # so that the next rewrite is not held responsible for this change
            notes += [f"{word}: {'; '.join(filter(None, said))}"] if any(said) else []
        return Rewritten(graph, tuple(notes), max(_changes(first, before, "all together"), default=0.0))

    def _with_moments(self, graph: Graph, rewrite: GraphRewrite) -> Graph:
        """The graph with the moments that a rewrite needs."""
        if rewrite.measures_moments is True:
            if not self.real:
                raise RecipeError(
                    f"{rewrite!r} measures the outputs of layers on samples, and there are none. Give calibration "
                    "samples in the place of `DataFree`, or take settings that measure nothing."
                )
            return with_measured_moments(graph, self.args, self.kwargs)
        if rewrite.measures_moments and self.real:
            return with_measured_moments(graph, self.args, self.kwargs, known=graph.moments.keys())
        return graph

    def _outputs(self, graph: Graph) -> list[Tensor]:
        return float_outputs(graph, self.args, self.kwargs)


def float_outputs(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The floating-point outputs. Outputs of whole numbers may change: a class follows the last digit of a logit."""
    with torch.no_grad():
        leaves = pytree.tree_leaves(graph.module()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


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
        found = compare(now, was)
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
