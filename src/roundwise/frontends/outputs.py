"""Outputs that no graph can have: objects that PyTorch cannot take apart into tensors, such as caches of decoders."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn


def explain_outputs(model: nn.Module, outputs: Any) -> str | None:
    """Why a model with these outputs cannot be captured, and what to do; None if every output is a tensor or number."""
    path, value = next(_unknown(outputs), ("", None))
    if value is None:
        return None
    if isinstance(value, float):
        return (
            f"the model cannot be captured as one graph: its result{path} is the number nan, and PyTorch finds no "
            "number that equals it. Leave it out of the result."
        )
    kind = type(value)
    where = f"its result{path}" if path else "its result"
    return (
        f"the model cannot be captured as one graph: {where} is a {kind.__name__}. A graph returns tensors, numbers "
        f"and None, in tuples, lists, dicts and classes that PyTorch can take apart. {_cure(model, value)}"
    )


def _unknown(outputs: Any) -> Iterator[tuple[str, Any]]:
    """The leaves that are neither tensors nor constants, each with its place in the result."""
    try:
        leaves = [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(outputs)[0]]
    except ValueError:  # a class that was registered without a function for its keys
        leaves = [("", leaf) for leaf in pytree.tree_leaves(outputs)]
    known = Tensor | bool | int | float | str | None
    return ((path, leaf) for path, leaf in leaves if not isinstance(leaf, known) or _is_nan(leaf))


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _cure(model: nn.Module, value: Any) -> str:
    kind = type(value)
    if "cache" in kind.__name__.lower():
        return _without_cache(model)
    if dataclasses.is_dataclass(value):
        name = f"{kind.__module__}.{kind.__qualname__}"
        return (
            f"Register the class once, `torch.export.register_dataclass({kind.__name__}, "
            f'serialized_type_name="{name}")`, or return a tuple or dict.'
        )
    if isinstance(value, dict):
        return "Return a plain dict, `dict(…)`: wrap the model in a module whose forward does."
    return (
        "Leave it out of the result, or return its tensors in a tuple or dict; or register the class with "
        "`torch.utils._pytree.register_pytree_node`."
    )


def _without_cache(model: nn.Module) -> str:
    """How to switch off the cache of keys and values that a decoder returns."""
    reason = "It is a cache of keys and values, for generating one token after the other."
    for path, part in model.named_modules():
        owner = f"model.{path}" if path else "model"
        if getattr(getattr(part, "config", None), "use_cache", False):
            return f"{reason} Switch it off before you quantize: `{owner}.config.use_cache = False`."
        if "use_cache" in inspect.signature(part.forward).parameters:
            if path:
                return f"{reason} Switch it off: let the model call `{path}` with `use_cache=False`."
            first = next(iter(inspect.signature(part.forward).parameters))
            return f"{reason} Switch it off with the samples: give a dict, `{{'{first}': …, 'use_cache': False}}`."
    return f"{reason} Leave it out of the result: wrap the model in a module that returns the rest."
