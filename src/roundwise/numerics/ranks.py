"""The ranks that a factorization offers, and how their errors compare."""

from __future__ import annotations

from collections.abc import Sequence


def ranks(largest: int, multiple: int) -> list[int]:
    """The ranks to choose from: all multiples of a number up to the largest rank; that one alone if it is smaller."""
    return list(range(multiple, largest + 1, multiple)) or [largest]


def some_ranks(known: list[int], most: int) -> list[int]:
    """At most so many of the ranks, evenly spaced, the smallest and the largest among them."""
    if len(known) <= most:
        return known
    return [known[round(place * (len(known) - 1) / (most - 1))] for place in range(most)]


def never_rising(sizes: Sequence[tuple[int, ...]], errors: Sequence[float]) -> list[float]:
    """For each size the largest error of this one and of all that are at least as large in every rank.

    Starts for larger ranks are not always better ones. A chain of a larger size can do what a smaller one does, so a
    choice of sizes must never count on the smaller one being better.
    """
    known = list(zip(sizes, errors, strict=True))
    return [
        max(error for larger, error in known if all(a <= b for a, b in zip(size, larger, strict=True)))
        for size in sizes
    ]
