"""Which values of a calibration batch are inputs of the model, and which are labels.

A value is an input if `forward` has a parameter for it. Labels are what is left over:

- In a tuple or list, values stand in the order of the positional parameters. What comes after the last parameter is a
  label. So is a value for a parameter that has a default and is called `labels` or `targets`.
- In a dict, a named tuple or a dataclass, names decide. If none is a parameter and the model requires one input, the
  value with a usual name (`image`, `pixel_values`, …) is the input; without such a name, the whole dict is the input.

An optional parameter can be there for something else than the value that stands in its place: `forward(x, mask=None)`
called with the (input, class) pairs of a data loader. Where a value looks like labels or does not fit the default, and
where a tuple could be one batch or a tuple of batches, that is an error: it names both readings, and a clear form.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.errors import CalibrationError
from roundwise.frontends import Signature

USUAL_NAMES = ("image", "images", "img", "pixel_values", "input", "inputs", "x", "data", "input_values", "input_ids")
"""Keys under which data sets usually keep the input of a model."""

LABEL_NAMES = frozenset({"label", "labels", "target", "targets", "y_true", "ground_truth"})
"""Names of optional parameters that take labels, from which a model computes its loss."""

_ONE_NUMBER = re.compile(r"len|time|step|index|idx|size|count|number|class|speaker|domain|(^|_)(id|t|pos|position)$")
"""Names of parameters of which a sample has one whole number, as it has of labels."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def inputs_of_batch(raw: Any, signature: Signature, notes: dict[str, None]) -> Arguments:
    """`(args, kwargs)` of one batch.

    Args:
        raw: the batch as it was given.
        signature: the inputs of the model.
        notes: gets a key for each kind of value that is not used.

    Raises:
        CalibrationError: the batch does not fit the model's parameters, or can be read in two ways.
    """
    if isinstance(raw, Tensor | np.ndarray):
        return (raw,), {}
    if isinstance(raw, Mapping):
        return _by_name(raw, signature, notes)
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return _by_name({field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}, signature, notes)
    if isinstance(raw, tuple) and hasattr(raw, "_asdict"):
        named = raw._asdict()
        if _first_inputs(signature) <= named.keys():
            return _by_name(named, signature, notes)
    if isinstance(raw, tuple | list):
        return _by_position(raw, signature, notes)
    raise CalibrationError(
        f"a calibration batch is a {type(raw).__name__}; it must be a tensor, or a tuple, list or dict of tensors."
    )


def check_single_batch(data: tuple[Any, ...], signature: Signature) -> None:
    """Raise if a tuple, which stands for one batch, looks like a tuple of batches.

    Raises:
        CalibrationError: says how to give a batch, and how to give several.
    """
    if len(data) < 2 or hasattr(data, "_asdict"):
        return
    nested = all(isinstance(value, tuple | list | Mapping) for value in data)
    alike = nested and len({str(pytree.tree_structure(value)) for value in data}) == 1
    more = not signature.variadic and len(data) > len(_positional(signature))
    if more and all(isinstance(value, Tensor | np.ndarray) for value in data):
        alike = len({(str(value.dtype), tuple(value.shape[1:])) for value in data}) == 1 and data[0].ndim > 1
    if alike:
        raise CalibrationError(
            f"the calibration samples are a tuple of {len(data)} values of one kind, which can be read as "
            f"{len(data)} batches, or as one batch with an input and labels. Give a list of batches, `list(data)`, or "
            "a list of this one batch, `[data]`; without labels, give the input alone."
        )


def _positional(signature: Signature) -> list[str]:
    return [name for name in signature.names if name not in signature.keyword_only]


def _first_inputs(signature: Signature) -> set[str]:
    """The required parameters; the first one if none is required."""
    return set(signature.required or signature.names[:1] or ("",))


def _by_position(raw: tuple[Any, ...] | list[Any], signature: Signature, notes: dict[str, None]) -> Arguments:
    if signature.variadic:
        return tuple(raw), {}
    names = _positional(signature) or [""]
    needed = max(1, sum(name in signature.required for name in names))
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for position, (name, value) in enumerate(zip(names, raw, strict=False)):
        if position >= needed and name in LABEL_NAMES:
            notes[_note_on_labels(name)] = None
            continue
        if position >= needed:
            _check_optional(position, name, value, signature)
        if len(args) == position:
            args.append(value)
        else:
            kwargs[name] = value  # a label before it was left out
    if len(raw) > len(names):
        notes[
            f"each batch held {len(raw)} values and the model takes {len(names)}: the first "
            f"{'was' if len(names) == 1 else f'{len(names)} were'} used, the others were treated as labels"
        ] = None
    return tuple(args), kwargs


def _note_on_labels(name: str) -> str:
    return (
        f"'{name}' was treated as labels, and left out: forward has a default for it. If it is an input, wrap the "
        "model in one whose forward requires it"
    )


def _check_optional(position: int, name: str, value: Any, signature: Signature) -> None:
    """Raise if a value may not be meant for the optional parameter in whose place it stands."""
    default = signature.defaults.get(name)
    if isinstance(value, Tensor | np.ndarray):
        whole = not value.dtype.is_floating_point if isinstance(value, Tensor) else value.dtype.kind in "iu"
        boolean = "bool" in str(value.dtype)
        per_sample = value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)
        if isinstance(default, bool | int | float | str) and value.ndim:
            reason = f"the default of '{name}' is {default!r}, not a tensor"
        elif whole and not boolean and per_sample and not _ONE_NUMBER.search(name):
            reason = "it holds one whole number for each sample, as labels do"
        else:
            return
        found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    elif isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        reason, found = "it holds text", f"a {type(value).__name__} of text"
    else:
        return
    first = ", ".join(f"'{it}': …" for it in _positional(signature)[:position])
    inputs = "the input alone" if position == 1 else f"only the first {position} values"
    raise CalibrationError(
        f"value {position + 1} of a calibration batch ({found}) stands in the place of the parameter '{name}' of "
        f"forward, which has a default, but {reason}. It can be an input or labels. If it is an input, give a dict: "
        f"{{{first}, '{name}': …}}. If it holds labels, give {inputs}."
    )


def _by_name(raw: Mapping[Any, Any], signature: Signature, notes: dict[str, None]) -> Arguments:
    labels = [
        name for name in raw if name in LABEL_NAMES and name in signature.names and name not in signature.required
    ]
    notes.update({_note_on_labels(name): None for name in labels})
    named = {name: raw[name] for name in signature.names if name in raw and name not in labels}
    usual = [name for name in USUAL_NAMES if name in raw and name not in named]
    required = set(signature.required)
    further = {}
    if signature.any_names:
        further = {str(key): value for key, value in raw.items() if key not in named and _may_be_input(key, value)}
    if required <= named.keys() and (named or further):
        args: tuple[Any, ...] = ()
        kwargs = {**named, **further}
        # A single input is passed by position, so that a dict and a tensor of the same samples give the same call.
        if len(kwargs) == 1 and next(iter(kwargs)) in _positional(signature)[:1]:
            args, kwargs = tuple(kwargs.values()), {}
        used = {*named, *further}
    elif required - named.keys() == set(_positional(signature)[:1]) and len(usual) == 1:
        args, kwargs, used = (raw[usual[0]],), named, {usual[0], *named}
    elif len(required) == 1 and not named:
        return (dict(raw),), {}
    else:
        raise _other_names(raw, signature)
    left = [str(key) for key in raw if key not in used and key not in labels]
    if left:
        notes[f"not used in any batch: {', '.join(left)}"] = None
    return args, kwargs


def _may_be_input(key: Any, value: Any) -> bool:
    """Whether a value can go into `**kwargs`: it is not text for each sample, and its name is not one of labels."""
    kinds = Tensor | np.ndarray | bool | int | float | str | None
    return isinstance(key, str) and key not in LABEL_NAMES and isinstance(value, kinds)


def _other_names(raw: Mapping[Any, Any], signature: Signature) -> CalibrationError:
    requires = ", ".join(map(repr, signature.required))
    takes = f"requires {requires}" if requires else f"takes {', '.join(map(repr, signature.names)) or 'no names'}"
    return CalibrationError(
        f"a calibration batch has the keys {', '.join(map(repr, raw))}, but the model's forward {takes}. Name the keys "
        "like the parameters, or give tuples."
    )
