"""Checks of what methods do: that their answers fit the layer, and that they leave their arguments alone.

Methods may be a user's own, and a mistake in one shall be an error that names the method and the layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import BlockSolver, Correction, Problem, RangeEstimator, Rounding, RoundingSolver
from roundwise.numerics.grid import Codebook, Grid

_WAY_OUT = "Correct its method `solve`, or take another solver for this layer."


def check_answer(answer: object, problem: Problem[Any], solver: RoundingSolver[Any] | BlockSolver[Any]) -> None:
    """Raise unless a solver's answer fits its problem.

    Raises:
        RecipeError: names the solver and the layer, and what was found and wanted.
    """
    if not isinstance(answer, Rounding):
        raise RecipeError(
            f"{solver!r} gave layer '{problem.name}' a {_kind(answer)}; it must be a Rounding. {_WAY_OUT}"
        )
    if found := _wrong_kind(answer) or _misfit(answer, problem):
        raise RecipeError(f"{solver!r} gave layer '{problem.name}' {found}. {_WAY_OUT}")


def _wrong_kind(answer: Rounding) -> str:
    """Which part of an answer is no tensor, grid or text, and what it must be; empty if all parts are."""
    kinds = {"codes": Tensor, "grid": Grid | None, "bias_shift": Tensor | None, "note": str}
    for name, kind in kinds.items():
        value = getattr(answer, name)
        if not isinstance(value, kind):
            wanted = getattr(kind, "__name__", kind)
            return f"a Rounding whose {name} is a {_kind(value)}; it must be a {wanted}"
    return ""


def _misfit(answer: Rounding, problem: Problem[Any]) -> str:
    """What does not fit the problem, and what must be in its place; empty if all fits."""
    book, shape = problem.grid.codebook, problem.weight.shape
    codes, own, shift = answer.codes, answer.grid, answer.bias_shift
    no_numbers = codes.is_complex() or codes.dtype == torch.bool
    if (
        codes.shape != shape
        or no_numbers
        or codes.is_floating_point()
        or codes.min() < book.qmin
        or codes.max() > book.qmax
    ):
        reach = "" if no_numbers or not codes.numel() else f" from {codes.min().item()} to {codes.max().item()}"
        return (
            f"codes that are {codes.dtype} {list(codes.shape)}{reach}; they must be integers {list(shape)} from "
            f"{book.qmin} to {book.qmax}"
        )
    if own is not None and (own.codebook, own.granularity_shape) != (book, problem.grid.granularity_shape):
        wanted = problem.grid.granularity_shape
        return f"a grid of {own.codebook} with scales {own.granularity_shape}; it must be of {book} with {wanted}"
    if own is not None and not (bool(own.scale.isfinite().all()) and bool((own.scale > 0).all())):
        return f"a grid with scales from {own.scale.min():g} to {own.scale.max():g}; they must be positive and finite"
    if shift is not None and not problem.bias_is_free:
        return "a shift of its bias; it must be None, because the layer has no bias that it alone reads"
    if shift is not None and (shift.shape != shape[:2] or not bool(shift.isfinite().all())):
        return f"a shift of its bias of shape {list(shift.shape)}; it must be finite numbers {list(shape[:2])}"
    return ""


def check_grid(grid: object, codebook: Codebook, layer: str, ranges: RangeEstimator[Any]) -> None:
    """Raise unless a range estimator has given a grid of the codebook that was asked for.

    Raises:
        RecipeError: names the estimator and the layer, and what was found and wanted.
    """
    found = f"a {_kind(grid)}" if not isinstance(grid, Grid) else f"a grid of {grid.codebook}"
    if not isinstance(grid, Grid) or grid.codebook != codebook:
        raise RecipeError(
            f"{ranges!r} gave layer '{layer}' {found}; it must be a Grid of {codebook}. Correct its method `estimate`."
        )


def check_shift(shift: object, shape: torch.Size, layer: str, correction: Correction[Any]) -> None:
    """Raise unless a correction has given one finite number for each output channel.

    Raises:
        RecipeError: names the correction and the layer, and what was found and wanted.
    """
    found = f"{list(shift.shape)}" if isinstance(shift, Tensor) else f"a {_kind(shift)}"
    if not isinstance(shift, Tensor) or shift.shape != shape or not bool(shift.isfinite().all()):
        raise RecipeError(
            f"{correction!r} gave layer '{layer}' a shift of its bias that is {found}; it must be a tensor of finite "
            f"numbers {list(shape)}, one for each output channel. Correct its method `shift`."
        )


@contextlib.contextmanager
def left_alone(method: object, layer: str, tensors: dict[str, Tensor]) -> Iterator[None]:
    """Raise at the end if a method has changed one of its arguments in place.

    Args:
        method: what runs inside.
        layer: for the message.
        tensors: the arguments by their names.

    Raises:
        RecipeError: names the method, the layer and the arguments.
    """
    # PyTorch counts the changes of a tensor, but not in inference mode.
    versions = {name: tensor._version for name, tensor in tensors.items() if not tensor.is_inference()}
    yield
    changed = [name for name, version in versions.items() if tensors[name]._version != version]
    if changed:
        raise RecipeError(
            f"{method!r} changed {' and '.join(changed)} of layer '{layer}' in place. Others read these tensors after "
            f"it, so a method must leave them alone: work on a copy, such as {changed[0]}.clone()."
        )


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ in ("builtins", "torch") else f"{kind.__module__}.{kind.__name__}"
