"""Which sizes the inputs of a graph may have.

A graph is captured with samples of one size. Its first dimension, the batch, is free. Numbers in its operations may
have been computed from the other sizes, so each other dimension is of one of three kinds:

    fixed       only the size of the samples: another one could give wrong numbers
    free        any size: nothing in the graph was computed from it
    dynamic     any size in a range, because the user asked for it: the graph computes with the size that it is given
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

Dynamic = Mapping[str, Mapping[int, str]]
"""The dimensions that a user wants to be dynamic: by the name of the input and the dimension, a name for the size.

Two dimensions with one name have the same size in every call."""


@final
@dataclass(frozen=True)
class Range:
    """Whole numbers from `low` to `high`; without an end if `high` is None.

    Example:
        >>> print(Range(2, 63), "|", Range(4), "|", Range())
        2 to 63 | 4 or more | 1 or more
        >>> Range(2, 63).holds(64)
        False
    """

    low: int = 1
    high: int | None = None

    def holds(self, number: int) -> bool:
        """Whether a number lies in the range."""
        return self.low <= number and (self.high is None or number <= self.high)

    def __str__(self) -> str:
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"


@final
@dataclass(frozen=True)
class VariableSize:
    """A dimension of an input, besides the batch, that may have other sizes than in the samples.

    Attributes:
        dim: which one, counted from 0.
        name: the user's name for a dynamic dimension; empty for a free one.
        sizes: the sizes that it may have.
    """

    dim: int
    name: str = ""
    sizes: Range = field(default_factory=Range)


@final
@dataclass(frozen=True)
class Limits:
    """What inputs must be beside their shapes and dtypes.

    Attributes:
        batches: how many samples one call may have.
        contiguous: whether inputs must be contiguous, because the order of values in memory changes the outputs.
    """

    batches: Range = field(default_factory=Range)
    contiguous: bool = False
