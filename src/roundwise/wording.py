"""Sizes, durations and counts as people read them."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """A number of bytes for people.

    Example:
        >>> human_bytes(1536)
        '1.5 KiB'
    """
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if round(count, 1) < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """A duration for people.

    Example:
        >>> human_seconds(200)
        '3 min 20 s'
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def number_of(number: int, what: str) -> str:
    """A number of things that can be counted, in the singular or the plural.

    Example:
        >>> number_of(1, "image"), number_of(1200, "class")
        ('1 image', '1,200 classes')
    """
    plural = ("es" if what.endswith("s") else "s") if number != 1 else ""
    return f"{number:,} {what}{plural}"
