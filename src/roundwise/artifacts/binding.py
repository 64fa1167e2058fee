"""Bring a call into the form in which the network was captured, as Python binds the arguments of a call.

A model is called in many ways that mean the same: `model(x, mask)`, `model(x, mask=mask)`, and with a default written
out, `model(x, mask, scale=1.0)`. The graph knows one of them: that of the samples. An argument that the samples did not
have is dropped if its value is the default, with which the network was captured. A dict is read by its keys, whatever
their order.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.errors import ModelError
from roundwise.graph.graph import CallStructure
from roundwise.wording import number_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def bound(structure: CallStructure, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """The arguments in the form that the graph takes; or as they are, if they have no such form.

    Raises:
        ModelError: an argument that the samples did not have is not the default; or one holds other keys, or more or
            fewer values, than that of the samples.
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
                f"{in_words(structure.defaults[name])} was captured, but it is {in_words(given[name])} now. Quantize "
                f"the model with samples that have '{name}': `{{'{(positional + by_name)[0]}': …, '{name}': …}}`."
            )
        del given[name]
    for name in captured & structure.defaults.keys() - given.keys():
        given[name] = structure.defaults[name]
    if given.keys() != captured:
        return args, kwargs
    made_args, made_kwargs = pytree.tree_unflatten([_LEAF] * structure.in_spec.num_leaves, structure.in_spec)
    for name, made in zip(structure.arguments, [*made_args, *made_kwargs.values()], strict=True):
        if made is not _LEAF:
            given[name] = _nested_as(made, given[name], name)
    return tuple(given[name] for name in positional), {name: given[name] for name in by_name}


_LEAF = object()


def _nested_as(made: Any, given: Any, name: str) -> Any:
    """An argument put together as at capture: dicts with their keys in that order, and lists and tuples alike.

    Args:
        made: the argument at capture, with `_LEAF` in place of each leaf.
        given: the argument now.
        name: of the argument, for the error.

    Raises:
        ModelError: it holds other keys, or more or fewer values.
    """
    if made is _LEAF:
        return given
    if isinstance(made, dict) and isinstance(given, Mapping) and made.keys() == given.keys():
        values = {key: _nested_as(made[key], given[key], f"{name}[{key!r}]") for key in made}
        match made:
            case OrderedDict():
                return OrderedDict(values)
            case defaultdict():
                return defaultdict(made.default_factory, values)
        return values
    if isinstance(made, tuple) and isinstance(given, tuple) and _fields(made) and _fields(made) == _fields(given):
        # A named tuple. One of a file has a class of its own, with the name and the fields of the model's.
        return type(made)(*(_nested_as(getattr(made, it), getattr(given, it), f"{name}.{it}") for it in _fields(made)))
    if type(made) in (list, tuple) and type(given) in (list, tuple) and len(made) == len(given):
        return type(made)(_nested_as(made[i], given[i], f"{name}[{i}]") for i in range(len(made)))
    if isinstance(made, dict | list | tuple) or type(made) is not type(given):
        if type(made) is type(given) and pytree.tree_structure(made) == pytree.tree_structure(given):
            return given
        raise ModelError(
            f"'{name}' is {_nesting(given)}, but it was {_nesting(made)} when the network was quantized. The network "
            "takes the values that it was captured with, no more and no fewer. Give these, or quantize the model with "
            "samples of the new form."
        )
    return given


def _fields(value: tuple[Any, ...]) -> tuple[str, ...]:
    """The names in a named tuple; empty for another tuple."""
    names: tuple[str, ...] = getattr(value, "_fields", ())
    return names


def _nesting(value: Any) -> str:
    """What a container holds, in words."""
    if isinstance(value, Mapping):
        return f"a dict with the keys {', '.join(map(repr, value)) or '(none)'}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {number_of(len(value), 'value')}"
    return in_words(value)


def _captured(structure: CallStructure) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the arguments at capture: by position, and by name."""
    count = structure.in_spec.child(0).num_children
    return structure.arguments[:count], structure.arguments[count:]


def same_constant(one: Any, other: Any) -> bool:
    """Whether two arguments that are not tensors have the same value, and a model cannot tell them apart.

    1, 1.0 and True are three values: a model may ask for the type, and a result in floating point has another dtype.
    So are 0.0 and -0.0, which have other reciprocals.
    """
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device) and torch.equal(
            one, other
        )
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        return False
    if _kind(one) is not _kind(other):
        return False
    if isinstance(one, float):
        return bool(math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    return bool(one == other)


def _kind(value: Any) -> type:
    """The type of a value, or the built-in type that its own type extends: `numpy.float64` is a float."""
    return next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), type(value))


def in_words(value: Any) -> str:
    """A short description of an argument."""
    if isinstance(value, Tensor | np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'}, {dtype} {list(value.shape)}"
    shown = isinstance(value, bool | int | float | str | enum.Enum | torch.dtype | slice | None)
    return repr(value) if shown else f"a {type(value).__name__}"
