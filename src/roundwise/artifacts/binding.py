"""Bring a call into the form in which the network was captured, as Python binds the arguments of a call.

A model is called in many ways that mean the same: `model(x, mask)`, `model(x, mask=mask)`, and with a default written
out, `model(x, mask, scale=1.0)`. The graph knows one of them: that of the samples. An argument that the samples did not
have is dropped if its value is the default, with which the network was captured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from roundwise.errors import ModelError
from roundwise.graph.graph import CallStructure

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def bound(structure: CallStructure, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The arguments in the form that the graph takes; or as they are, if they have no such form.

    Raises:
        ModelError: an argument that the samples did not have is not the default.
    """
    positional, by_name = _captured(structure)
    order = structure.parameters or positional
    given = {**dict(zip(order, args, strict=False)), **kwargs}
    if len(args) > len(order) or len(given) < len(args) + len(kwargs):
        return args, kwargs
    captured = {*positional, *by_name}
    for name in structure.defaults.keys() & given.keys() - captured:
        if not same_constant(given[name], structure.defaults[name]):
            raise ModelError(
                f"'{name}' was not among the samples when the network was quantized, so its default "
                f"{structure.defaults[name]!r} was captured, but it is {in_words(given[name])} now. Quantize the model "
                f"with samples that have '{name}': `{{'{(positional + by_name)[0]}': …, '{name}': …}}`."
            )
        del given[name]
    for name in captured & structure.defaults.keys() - given.keys():
        given[name] = structure.defaults[name]
    if given.keys() != captured:
        return args, kwargs
    return tuple(given[name] for name in positional), {name: given[name] for name in by_name}


def _captured(structure: CallStructure) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the arguments at capture: by position, and by name."""
    count = structure.in_spec.child(0).num_children
    return structure.arguments[:count], structure.arguments[count:]


def same_constant(one: Any, other: Any) -> bool:
    """Whether two arguments that are not tensors have the same value."""
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        return False
    return one is other or bool(one == other and (one is None) == (other is None))


def in_words(value: Any) -> str:
    """A short description of an argument."""
    if isinstance(value, Tensor | np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'}, {dtype} {list(value.shape)}"
    return repr(value) if isinstance(value, bool | int | float | str | None) else f"a {type(value).__name__}"
