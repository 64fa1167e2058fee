"""Numbers and names as a page shows them, and the frame for what is wider than it."""

from __future__ import annotations

import html
import math

OVERFLOW = 1e100
"""An error above it is no measurement: activations overflowed. (Reports are JSON, and keep infinity as a number.)"""


def escaped(text: object) -> str:
    """Any text as HTML that shows just that, in elements and in attributes.

    Example:
        >>> escaped("<b> & co")
        '&lt;b&gt; &amp; co'
    """
    return html.escape(str(text), quote=True)


def number(value: float) -> str:
    """Four digits, with a minus sign as in print.

    Example:
        >>> number(-0.123456), number(1e-9), number(256.0), number(float("inf"))
        ('−0.1235', '1e−09', '256', '∞')
    """
    if math.isnan(value):
        return "NaN"
    text = "∞" if abs(value) >= OVERFLOW else f"{abs(value):.4g}"
    return f"−{text}".replace("e-", "e−") if value < 0 else text.replace("e-", "e−")


def seconds(value: float) -> str:
    """A time, to three digits or whole seconds.

    Example:
        >>> seconds(0.012345), seconds(4.256), seconds(4120.3)
        ('0.0123 s', '4.26 s', '4,120 s')
    """
    return f"{value:.3g} s" if value < 99.95 else f"{value:,.0f} s"


def percent(share: float) -> str:
    """A share of 1 in per cent.

    Example:
        >>> percent(0.1234), percent(0.0001), percent(0.0)
        ('12.3 %', '0.010 %', '0.0 %')
    """
    return f"{share * 100:.3f} %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"


def between(ends: tuple[float, float]) -> str:
    """A range of numbers, or the number where both ends are one.

    Example:
        >>> between((1.0, 2.5)), between((3.0, 3.0))
        ('1 … 2.5', '3')
    """
    low, high = map(number, ends)
    return low if low == high else f"{low} … {high}"


def decibels(error: float) -> float:
    """Signal to quantization noise, −10 log₁₀ error: +∞ without an error, −∞ where it overflows.

    Example:
        >>> decibels(0.01), decibels(0.0)
        (20.0, inf)
    """
    if error == 0:
        return math.inf
    return -math.inf if error >= OVERFLOW else -10 * math.log10(error)


def scrolling(label: str, content: str) -> str:
    """What may be wider than the page, in a frame of its own that can be scrolled from the keyboard too."""
    return f'<div class="scroll" role="region" aria-label="{escaped(label)}" tabindex="0">\n{content}\n</div>'
