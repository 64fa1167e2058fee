"""What a pass is made of: units to work on, and the weights that come out.

A *task* is a unit of the graph with what shall be done to it. The stream (`engine/stream.py`) collects the statistics
that the task asks for, lets it solve, and goes on with the weights of the answer. It does not know what kind of weights
these are: integer codes that stand for floats, or other floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor, fx

from roundwise.graph.analysis.layers import Layer
from roundwise.graph.unit import Unit
from roundwise.statistics import Addend

W_co = TypeVar("W_co", bound="ChosenWeight", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class StreamPair(NamedTuple):
    """The value of one tensor in the reference network and in the network so far; one object if the two are equal."""

    reference: Any
    current: Any


class ChosenWeight(Protocol):
    """The weight and the bias with which the stream runs a layer."""

    @property
    def layer(self) -> Layer:
        """The layer."""

    @property
    def bias(self) -> Tensor | None:
        """Its bias; None if it has none."""

    def weight(self, dtype: Any) -> Tensor:
        """Its weight tensor."""


class Solved(Protocol[W_co, R_co]):
    """The answer of a task for one of its layers, or for a chain of layers that stand for one."""

    @property
    def weights(self) -> Sequence[W_co]:
        """The weights to go on with."""

    @property
    def simpler(self) -> Sequence[W_co]:
        """Weights of the same layers that were chosen in a simpler way, to compare errors with."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time by activity."""

    def report(self, error_simpler: float, error: float, note: str) -> R_co:
        """The entry for the report.

        Args:
            error_simpler, error: the relative error of the unit's output with either weights; NaN if not measured.
            note: is added to the entry's own notes.
        """


class UnitTask(Protocol[W_co, R_co]):
    """A unit, and what shall be done to it."""

    @property
    def unit(self) -> Unit:
        """The unit."""

    @property
    def changes(self) -> bool:
        """Whether weights change; False where the task only looks, and `solve` answers nothing."""

    @property
    def addend(self) -> fx.Node | None:
        """The branch whose error the targets shall make up for; None for targets as they are."""

    def statistics(self, samples: int, seed: int) -> Any:
        """Empty statistics, for this number of samples."""

    def collect(
        self, statistics: Any, inputs: Sequence[StreamPair], targets: Tensor, samples: int, addend: Addend | None
    ) -> None:
        """Add one batch to the statistics: the unit's inputs in both streams, its targets, and the other branch."""

    def solve(self, statistics: Any, seed: int) -> Sequence[Solved[W_co, R_co]]:
        """Choose the weights."""

    def bytes_needed(self, samples: int, positions: int) -> int:
        """Bytes for the statistics and for solving with them, at most; `positions` is their number per sample."""

    def work(self, items_per_sample: int, samples: int) -> float:
        """The estimated cost of solving, in forward passes of the unit over one item."""
