"""Reports as plain data, for JSON and for files; and what data that were read must hold.

JSON has no NaN and no infinity: such an error is None there, and NaN when it is read.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import cattrs

T = TypeVar("T")

_NOT_NEGATIVE = frozenset(
    [
        "accuracy",
        "bits",
        "clipped",
        "counts",
        "error",
        "error_nearest",
        "error_weights",
        "float_bytes",
        "flips",
        "macs",
        "oscillating",
        "output_error",
        "parameters",
        "peak_activation_bytes",
        "quantized_bytes",
        "samples",
        "scale",
        "scales",
        "seconds",
        "setup_seconds",
        "shape",
        "size",
        "weights",
    ]
)
"""The fields of reports whose numbers are 0 or more."""

MOST_WEIGHTS, MOST_BINS = 2**63, 1024
"""The shape of a weight with more numbers, and a histogram with more bins (there are 48), are refused in reports."""


def to_plain(report: Any) -> dict[str, Any]:
    """A report as plain data for JSON."""
    plain: dict[str, Any] = _CONVERTER.unstructure(report)
    return plain


def from_plain(data: dict[str, Any], kind: type[T]) -> T:
    """The inverse of `to_plain`.

    Raises:
        Exception: of any type, if the data are not those of a report.
    """
    report: T = _CONVERTER.structure(data, kind)
    _check_values(report)
    return report


def _check_values(entry: Any) -> None:
    """Raise if a report, or an entry of it, has a number that cannot be: it is shown, and counted with.

    Raises:
        ValueError: names the field.
    """
    for one in fields(entry):
        value = getattr(entry, one.name)
        if one.name == "shape" and (len(value) > 64 or math.prod(value) >= MOST_WEIGHTS):
            raise ValueError(f"a shape has {len(value)} sizes, and more than 2**63 numbers")
        if one.name == "counts" and not 0 < len(value) <= MOST_BINS:
            raise ValueError(f"counts has {len(value)} bins, and can have 1 to {MOST_BINS}")
        numbers = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
        for number in numbers:
            if is_dataclass(number):
                _check_values(number)
            elif one.name in _NOT_NEGATIVE and isinstance(number, int | float) and number < 0:
                raise ValueError(f"{one.name} is {number!r}, and can only be 0 or more")


def _exactly(value: Any, kind: type) -> Any:
    """A value that must be of a type as it is: a report from a file is printed, and must hold what it seems to hold.

    Raises:
        TypeError: it is of another type.
    """
    if type(value) is not kind:
        raise TypeError(f"a report has {value!r}, where a value of type {kind.__name__} belongs")
    return value


def _number(value: Any, _: type) -> float:
    if value is None:
        return math.nan
    if type(value) not in (int, float):
        raise TypeError(f"a report has {value!r}, where a number belongs")
    return float(value)


# JSON has no NaN. Errors are NaN without data, and may be infinite if a network in float16 overflows.
_CONVERTER = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
_CONVERTER.register_unstructure_hook(float, lambda value: value if math.isfinite(value) else None)
_CONVERTER.register_structure_hook(float, _number)
for _kind in (bool, int, str):
    _CONVERTER.register_structure_hook(_kind, _exactly)
