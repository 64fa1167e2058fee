"""Labels of places: which are the same, and which must stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, final

Role = Literal["rows", "columns", "parameter"]
"""What a dimension of a constant is: a layer's output channels, its input channels, or one number for each."""

Slot = tuple[str, int]
"""A constant's name, and a dimension of it."""


class Track(NamedTuple):
    """The followed dimension of a value, and the label of each place along it."""

    axis: int
    labels: list[int]


class UnfollowedError(Exception):
    """Channels cannot be followed beyond an operation; says why."""


@final
class Labels:
    """Sets of labels that are the same, and the reasons why some must stay (a union-find).

    Example:
        >>> labels = Labels()
        >>> some, others = labels.fresh(2), labels.fresh(2)
        >>> labels.join(some, others)
        >>> labels.fix(others[:1], "the network returns it")
        >>> [labels.reason(label) for label in some]
        ['the network returns it', '']
    """

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> list[int]:
        """New labels, each in a set of its own."""
        new = list(range(len(self._parents), len(self._parents) + count))
        self._parents += new
        return new

    def root(self, label: int) -> int:
        """The label that stands for all that are the same as this one."""
        while self._parents[label] != label:
            self._parents[label] = label = self._parents[self._parents[label]]
        return label

    def join(self, some: Sequence[int], others: Sequence[int]) -> None:
        """Make labels the same, one by one."""
        for one, other in zip(some, others, strict=True):
            kept, gone = sorted((self.root(one), self.root(other)))
            if kept != gone:
                self._parents[gone] = kept
                if gone in self._reasons:
                    self._reasons.setdefault(kept, self._reasons.pop(gone))

    def fix(self, labels: Iterable[int], reason: str) -> None:
        """Let labels stay whatever is removed; the first reason counts."""
        for label in labels:
            self._reasons.setdefault(self.root(label), reason)

    def reason(self, label: int) -> str:
        """Why a label must stay, or empty."""
        return self._reasons.get(self.root(label), "")
