"""Are the arguments of an operation of the kinds that its schema names?

PyTorch checks some of this when an operation is called from Python, and not all: it takes the number 124 for a dtype,
and reads memory that is not there. So an operation of a file is called only with arguments that passed this check.

The arguments are values: tensors (or tensors without numbers) and plain numbers, not nodes of a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)
"""The dtypes that tensors of a file and results of its operations may have."""

MEMORY_FORMATS = (
    *(torch.contiguous_format, torch.preserve_format),
    *(torch.channels_last, torch.channels_last_3d),
)
"""The orders of a tensor's numbers in memory that a file may ask for."""

MOST_NUMBERS = 64
"""The longest list of numbers among the arguments of an operation. Sizes and dimensions are never longer than 16."""

LARGEST = 1 << 31
"""The largest whole number among the arguments, but for ends of slices and numbers to calculate with.

Kernels multiply two such numbers, and the product still fits in 64 bits.
"""

_POSITIONS = frozenset({"start", "end"})
"""Arguments of slices, which PyTorch cuts to the size of the dimension: an end may be the largest number there is."""


class UnsafeError(Exception):
    """An operation cannot be run, or could do harm; the message says why, and follows the operation's name."""


def bind_values(function: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an operation by their names, defaults filled in.

    Raises:
        UnsafeError: there are too many or too few, or one of them is not of the kind that the schema names.
    """
    schema = function._schema.arguments
    if len(args) > len(schema) or any(argument.kwarg_only for argument in schema[: len(args)]):
        positional = sum(not argument.kwarg_only for argument in schema)
        raise UnsafeError(f"takes {positional} arguments by position, but is given {len(args)}")
    bound = {argument.name: value for argument, value in zip(schema, args, strict=False)}
    for name, value in kwargs.items():
        if name in bound or all(name != argument.name for argument in schema):
            raise UnsafeError(f"takes no argument '{name}', or is given it twice")
        bound[name] = value
    for argument in schema:
        if argument.name in bound:
            far = argument.name in _POSITIONS and function._schema.name.startswith("aten::slice")
            _check(argument.name, argument.real_type, bound[argument.name], None if far else LARGEST)
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
        else:
            raise UnsafeError(f"is not given the argument '{argument.name}'")
    return bound


def _check(name: str, kind: Any, value: Any, largest: int | None) -> None:
    """Raise unless a value is of a kind that a schema names, and if it counts something no larger than `largest`."""
    what = kind.kind()
    if what == "OptionalType":
        if value is not None:
            _check(name, kind.getElementType(), value, largest)
        return
    if what == "ListType":
        element = kind.getElementType()
        if isinstance(value, list | tuple):
            if len(value) > MOST_NUMBERS and element.kind() not in ("TensorType", "OptionalType"):
                raise UnsafeError(f"is given {len(value)} numbers as '{name}', more than {MOST_NUMBERS}")
            for item in value:
                _check(name, element, item, largest)
            return
        _check(name, element, value, largest)  # one number where a list of them is wanted stands for each
        return
    fits = _KINDS.get(what)
    if fits is None or not fits(value):
        raise UnsafeError(f"is given {_short(value)} as '{name}', which must be of the kind {kind}")
    if largest is not None and what in ("IntType", "SymIntType") and abs(value) > largest:
        raise UnsafeError(f"is given {value} as '{name}'; the largest number that it may be given is {largest}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """A number that 64 bits hold."""
    return isinstance(value, int | float) and not (isinstance(value, int) and abs(value) >= 1 << 63)


_KINDS: dict[str, Callable[[Any], bool]] = {
    "TensorType": lambda value: isinstance(value, Tensor) or _is_number(value),
    "IntType": lambda value: _is_whole(value) and _is_number(value),
    "SymIntType": lambda value: _is_whole(value) and _is_number(value),
    "FloatType": lambda value: not isinstance(value, bool) and _is_number(value),
    "NumberType": _is_number,
    "BoolType": lambda value: isinstance(value, bool),
    "StringType": lambda value: isinstance(value, str) and len(value) <= 200 and value.isascii(),
    "ScalarTypeType": lambda value: isinstance(value, torch.dtype) and value in DTYPES,
    "LayoutType": lambda value: value is torch.strided,
    "MemoryFormatType": lambda value: isinstance(value, torch.memory_format) and value in MEMORY_FORMATS,
    "DeviceObjType": lambda value: isinstance(value, torch.device),
}


def check_number(value: Any) -> None:
    """Raise unless a value is a number that 64 bits hold, as sizes and what is calculated from them must be.

    Raises:
        UnsafeError: it is something else.
    """
    if not _is_number(value) or (isinstance(value, float) and not math.isfinite(value)):
        raise UnsafeError(f"calculates with {_short(value)}, which is not a finite number of at most 64 bits")


def bytes_of(tensor: Tensor) -> int:
    """Bytes that a tensor takes. A size of 0 counts as 1, for some kernels run through all others even then."""
    return math.prod(max(1, size) for size in tensor.shape) * tensor.element_size()


def _short(value: Any) -> str:
    """A value for a message, in at most 80 characters."""
    text = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
