"""What a caller of `export` asks for, checked before any work is done for it."""

from __future__ import annotations

import math

import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.artifacts.binding import Arguments, bound
from roundwise.artifacts.model import Model
from roundwise.errors import ExportError, ModelError
from roundwise.exporters.interface import Check


def requested_check(model: Model, samples: object, tolerance: object) -> Check:
    """The samples to compare on, as `(args, kwargs)` in the order in which the model takes them, and the tolerance.

    Raises:
        ExportError: the samples are not the model's inputs, or hold NaN; or the tolerance is not a number of 0 or more.
    """
    if tolerance is not None and (
        not isinstance(tolerance, int | float)
        or isinstance(tolerance, bool)
        or not math.isfinite(tolerance)
        or tolerance < 0
    ):
        raise ExportError(
            f"tolerance={tolerance!r}: the largest relative difference that passes is a finite number of 0 or more. "
            "Give a number such as 1e-4, or leave it out."
        )
    return Check(None if samples is None else _arguments(model, samples), tolerance)


def _arguments(model: Model, samples: object) -> Arguments:
    match samples:
        case Tensor():
            given: Arguments = (samples,), {}
        case (tuple() as args, dict() as kwargs):
            given = args, kwargs
        case _:
            raise ExportError(
                f"samples to compare on are given as a {type(samples).__name__}. Give a tensor, or "
                "(positional inputs, inputs by name), as in `samples=((x,), {})` and `samples=((), {'x': x})`."
            )
    for leaf in pytree.tree_leaves(given):
        if isinstance(leaf, Tensor) and (leaf.dim() == 0 or not len(leaf)):
            raise ExportError(
                f"samples to compare on have the shape {list(leaf.shape)}. Give tensors of shape [samples, …] with at "
                "least one sample."
            )
        if isinstance(leaf, Tensor) and bool(leaf.isnan().any()):
            raise ExportError(
                f"samples to compare on contain NaN, {int(leaf.isnan().sum())} of {leaf.numel()} values, so nothing "
                "can be compared. Remove such samples."
            )
    given = pytree.tree_map_only(Tensor, lambda leaf: leaf.to(model.device), given)
    try:
        model(*given[0], **given[1])
    except ModelError as error:
        raise ExportError(f"samples to compare on do not fit the model: {error}") from error
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        raise ExportError(
            f"samples to compare on do not fit the model: it raises {type(error).__name__}: {error}. {notes} Give "
            "inputs such as the network was quantized with, `samples=((x,), {})`."
        ) from error
    return bound(model.graph.structure, *given)
