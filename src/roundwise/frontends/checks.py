"""Compare a captured graph with the model that it was captured from.

1. On the samples, in batches of other sizes than the one that was exported, the second of them in inference mode.
2. At sizes at which a condition of the export does not hold (`conditions.py`).

A graph that differs is refused. `ways_of_use.py` compares further; a graph that differs there is right in the usual
case.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from roundwise.errors import CalibrationError, CaptureError
from roundwise.frontends.conditions import Conditions, OtherSizes
from roundwise.frontends.double import Double
from roundwise.frontends.explain import first_lines, locate, way_out
from roundwise.frontends.exporting import SMALLEST, Inputs, take
from roundwise.frontends.settings import fast_path, without_fast_path
from roundwise.frontends.sizes import resized
from roundwise.graph.graph import Graph
from roundwise.graph.sizes import Range
from roundwise.numerics.output_error import INTEGER_TOLERANCE, as_tensor, compare
from roundwise.wording import number_of

_TWO_DIFFER = re.compile(r"\S+ != \S+")
"""A condition that two sizes, or a size and a number, are not equal."""


def run(double: Double, inputs: Inputs, *, copies: bool = True) -> Any:
    """The model's outputs. If the model raises an error, the samples do not fit it.

    Args:
        double: of the model.
        inputs: samples.
        copies: whether the model, which may write to its inputs, is given copies. A copy can have other strides.
    """
    try:
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, inputs) if copies else inputs
        return double.module(*args, **kwargs)
    except Exception as error:
        given = [
            f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
            for leaf in pytree.tree_leaves(inputs)
        ]
        place = locate(double.module, traceback.walk_tb(error.__traceback__))
        at = f", at {place}" if place else ""
        dtype = _other_dtype(double.module, inputs, error)
        raise CalibrationError(
            f"the model does not run on the calibration samples. It was called with {', '.join(given)} and raised "
            f"{type(error).__name__}: {first_lines(error)}{at}.{dtype}\nGive samples of the shape, dtype and structure "
            "that the model's forward takes. The first dimension of every tensor counts samples, and the model must "
            "take any number of them."
        ) from error


def _other_dtype(model: nn.Module, inputs: Inputs, error: Exception) -> str:
    """A sentence on samples of another dtype than the model's weights, if the error is about dtypes."""
    dtype = next((it.dtype for it in model.parameters() if it.is_floating_point()), None)
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if dtype is None or "type" not in str(error) or all(tensor.dtype == dtype for tensor in tensors):
        return ""
    return f" The model's weights are {dtype}: give inputs that are images or features as `x.to({dtype})`."


@final
@dataclass(frozen=True, eq=False)
class FirstRun:
    """The first real run of a model, on few samples, in the caller's settings.

    It comes before the export: what the model's code keeps outside the model, in `functools.lru_cache` or an attribute
    of a class, then holds real tensors. The export would leave fake ones there, which break the model.

    Attributes:
        double: that has run. It has copies of all tensors, since the model may write to its state.
        outputs: of the run; None if it failed.
        failure: the error that the model does not run.
    """

    double: Double
    outputs: Any
    failure: CalibrationError | None

    @classmethod
    def of(cls, double: Double, inputs: Inputs, fewest: int) -> FirstRun:
        """Run another double of the model on the samples of the first comparison, if `fewest` are needed."""
        copied = double.another(copies_weights=True)
        return cls(copied, *attempt(copied, take(inputs, max(SMALLEST, fewest))))


_HIDDEN = (
    "the model's code decides by something that is not in the values of its inputs: the number of samples "
    "(`if x.shape[0] > 1`), state of its own, the clock, whether gradients are computed. Or it overwrites what dropout "
    "handed on, and with it dropout's input (`y = drop(x); y += 1`). Take that out of its forward."
)
"""Why a graph may differ from its model, where nothing is known of the cause."""


def check_equal(
    double: Double, graph: Graph, inputs: Inputs, fewest: int = 1, done: FirstRun | None = None, cause: str = ""
) -> tuple[str, ...]:
    """Compare the graph with the model on real samples, in batches of other sizes than the one exported.

    PyTorch's own ranges begin at 2. If the graph is right for one sample too, its range begins at 1.

    Args:
        double: of the model.
        graph: of the model.
        inputs: samples.
        fewest: samples that the model may be given.
        done: the run on the first batch, if it was done before. It is not used for a graph of one batch size.
        cause: why the graph may differ, if something is known.

    Returns:
        Notes on how the model's outputs depend on the caller's settings.

    Raises:
        CaptureError: their outputs differ by more than rounding explains.
    """
    if done is None or graph.batch is not None:
        done = None
        double = double.another()  # for all calls, so that a second call that gives something else is seen
    else:
        double = done.double
    few = max(SMALLEST, fewest)
    sizes = (few, 1 if fewest == 1 else few) if graph.batch is None else (graph.batch, graph.batch)
    first, second = (take(inputs, samples) for samples in sizes)
    notes = dict(_check_equal_batch(double, graph, first, done=done, cause=cause or _HIDDEN))
    try:
        notes = {**dict(_check_equal_batch(double, graph, second, after=first, cause=cause or _HIDDEN)), **notes}
    except CaptureError:
        if cause or sizes[1] > 1 or graph.limits.batches.low != SMALLEST:
            raise
    else:
        if graph.limits.batches.low == SMALLEST and fewest == 1:
            graph.limits = replace(graph.limits, batches=Range(1, graph.limits.batches.high))
    return tuple(notes.values())


def _check_equal_batch(
    double: Double,
    graph: Graph,
    inputs: Inputs,
    *,
    cause: str,
    after: Inputs | None = None,
    done: FirstRun | None = None,
) -> Iterator[tuple[str, str]]:
    """Compare the graph with the model, as the caller's settings let it run, on one batch.

    Args:
        double: of the model.
        graph: of the model.
        inputs: the batch.
        cause: why they may differ, and what to do.
        after: the batch of the call before. If there was one, this call is in inference mode.
        done: the run on this batch, if it was done before.

    Yields:
        Notes, each with the setting that it is about.
    """
    samples = next((leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()), 1)
    if done is None:
        expected, failure = attempt(double, inputs, inference=after is not None)
    else:
        expected, failure = done.outputs, done.failure
    difference = "" if failure else difference_of(expected, graph, inputs)
    if after is not None and (failure or difference):
        in_inference, again = difference, double.another()
        run(again, after)
        expected, failure = attempt(again, inputs)
        difference = "" if failure else difference_of(expected, graph, inputs)
        if in_inference and not failure and not difference:
            yield (
                "inference mode",
                "the model's code does something else in `torch.inference_mode()`: on samples, "
                f"{in_inference}. The network computes what the model computes under `torch.no_grad()`",
            )
    if failure is not None:
        if samples > 1:
            raise failure
        return  # the model needs several samples, for batch-norm with the batch's own statistics for example
    path = fast_path(double.another().module, *inputs)
    if path is not None and (difference or path.drops_places):
        with without_fast_path():
            difference_without = difference_of(run(double.another(), inputs), graph, inputs)
        if not difference_without:
            yield "fast path", path.note(difference)
            return
    if difference:
        raise CaptureError(
            "the captured graph does not compute what the model computes; on a batch of "
            f"{number_of(samples, 'sample')}, {difference}. {cause[0].upper()}{cause[1:]}\n"
            f"{way_out(double.module, '')}"
        )


def attempt(double: Double, inputs: Inputs, *, inference: bool = False) -> tuple[Any, CalibrationError | None]:
    """The model's outputs, or the error that it does not run."""
    try:
        # `inference_mode(False)` would switch gradients on.
        with torch.inference_mode() if inference else torch.no_grad():
            return run(double, inputs), None
    except CalibrationError as error:
        return None, error


def check_other_size(double: Double, graph: Graph, inputs: Inputs, other: OtherSizes) -> None:
    """Compare the graph with the model at a size at which a condition of the export does not hold."""
    args, kwargs = _resized(inputs, other)
    try:
        with warnings.catch_warnings(action="ignore"), without_fast_path():
            expected = run(double.another(), (args, kwargs))
    except CalibrationError:
        return  # the model refuses that size itself
    difference = difference_of(expected, graph, (args, kwargs))
    if difference:
        shapes = [str(list(leaf.shape)) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise CaptureError(
            f"the model's code does something else for some sizes: it was captured where {other.condition}, and with "
            f"inputs of {' and '.join(shapes)} {difference}. Take that decision out of the model's forward, or "
            f"leave that dimension out of `dynamic` if it is there.\n{way_out(double.module, '')}"
        )


def check_conditions(conditions: Conditions, graph: Graph, inputs: Inputs) -> None:
    """Refuse a program that holds only for every other number of samples or the like: the graph would hold for all.

    Two sizes that must differ are a condition of PyTorch's own in most programs, and are no reason to refuse one.
    """
    for other in conditions.others:
        if _TWO_DIFFER.fullmatch(other.condition):
            continue
        args, kwargs = _resized(inputs, other)
        try:
            graph.module()(*args, **kwargs)
        except Exception:  # noqa: S112  # the graph refuses these sizes itself
            continue
        shapes = [str(list(leaf.shape)) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise CaptureError(
            f"the program holds only where {other.condition}, and so not for inputs of {' and '.join(shapes)}. It was "
            "exported from code that decides by sizes. Give the model itself, or export it with fixed sizes."
        )


# --------------------------------------------------------------------------------------------------------- differences


def _resized(inputs: Inputs, other: OtherSizes) -> Inputs:
    """The samples with other sizes."""
    leaves, spec = pytree.tree_flatten(inputs)
    args, kwargs = pytree.tree_unflatten(resized(leaves, other.sizes), spec)
    return args, kwargs


def difference_of(outputs: Any, graph: Graph, inputs: Inputs) -> str:
    """Where the graph's outputs differ from those of the model, in words; empty if they agree."""
    args, kwargs = inputs
    try:
        return _difference(pytree.tree_leaves(outputs), pytree.tree_leaves(graph.module()(*args, **kwargs)))
    except Exception as error:
        return f"it raises {type(error).__name__}: {first_lines(error)}"


def _difference(expected: list[Any], found: list[Any]) -> str:
    """Where two lists of outputs differ, in words; empty if they agree."""
    if len(expected) != len(found):
        return f"it gives {number_of(len(found), 'value')} instead of {len(expected)}"
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        y, y_hat = as_tensor(one), as_tensor(other)
        if y is None or y_hat is None or isinstance(one, Tensor) != isinstance(other, Tensor):
            if one is not other and one != other:
                return f"output {number} is {other!r} instead of {one!r}"
            continue
        if (y.shape, y.dtype) != (y_hat.shape, y_hat.dtype):
            return f"output {number} is {y_hat.dtype} {list(y_hat.shape)} instead of {y.dtype} {list(y.shape)}"
        error = compare(y_hat, y)
        # 3e-4 in float32, 0.03 in float16. A class may change with the last digit of a logit.
        tolerance = INTEGER_TOLERANCE if error.whole else torch.finfo(y.dtype).eps ** 0.5
        if error.relative_difference > tolerance:
            share = (
                f"in {error.relative_difference:.1%} of its values"
                if error.whole
                else (f"by up to {error.largest_difference:.2g}, {error.relative_difference:.2g} of its largest value")
            )
            return f"output {number} differs {share}"
    return ""
