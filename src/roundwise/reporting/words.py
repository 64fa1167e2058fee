"""How the report page writes numbers. The template uses these functions as filters."""

from __future__ import annotations

import math

OVERFLOW = 1e100
"""Larger errors count as infinite: the activations overflowed. (A report in JSON cannot hold infinity itself.)"""


def number(value: float) -> str:
    """Four digits, with a typographic minus sign.

    Example:
        >>> number(-0.123456), number(1e-9), number(256.0), number(float("inf"))
        ('−0.1235', '1e−09', '256', '∞')
    """
    if math.isnan(value):
        return "NaN"
    text = "∞" if abs(value) >= OVERFLOW else f"{abs(value):.4g}"
    return ("−" if value < 0 else "") + text.replace("e-", "e−")


def seconds(value: float) -> str:
    """A time to three digits, or in whole seconds.

    Example:
        >>> seconds(0.012345), seconds(4.256), seconds(4120.3)
        ('0.0123 s', '4.26 s', '4,120 s')
    """
    return f"{value:.3g} s" if value < 99.95 else f"{value:,.0f} s"


def percent(share: float) -> str:
    """A share between 0 and 1 as a percentage.

    Example:
        >>> percent(0.1234), percent(0.0001), percent(0.0)
        ('12.3 %', '0.010 %', '0.0 %')
    """
    return f"{share * 100:.3f} %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"


def interval(ends: tuple[float, float]) -> str:
    """Two numbers, or one if both are equal.

    Example:
        >>> interval((1.0, 2.5)), interval((3.0, 3.0))
        ('1 … 2.5', '3')
    """
    low, high = map(number, ends)
    return low if low == high else f"{low} … {high}"


def decibels(error: float) -> float:
    """Signal-to-quantization-noise ratio, −10 log₁₀ error: +∞ without an error, −∞ if the error overflows.

    Example:
        >>> decibels(0.01), decibels(0.0)
        (20.0, inf)
    """
    if error == 0:
        return math.inf
    return -math.inf if error >= OVERFLOW else -10 * math.log10(error)
