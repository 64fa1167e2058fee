"""The rounding problem of one layer, and its answer.

Given a weight matrix W, a grid, and what was learnt about the layer's inputs x̂ (those of the network whose earlier
layers are already quantized) and targets y (the float network's outputs), choose integer codes q such that

    E ‖ f_a(y) − f_a(ŵ(q) x̂ + b) ‖²                                                         (Eq. 25)

is small, where ŵ(q) = s (q − z) and f_a is the activation function that follows the layer, if one does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.grid import Codebook, Granularity, Grid
from roundwise.statistics import Statistic

S = TypeVar("S", bound=Statistic)


@final
@dataclass(frozen=True)
class Problem(Generic[S]):
    """Everything that a rounding solver may look at.

    Attributes:
        name: the layer's name in the model.
        weight: float32 matrix `[groups, rows, cols]`; rows are output channels, groups are independent.
        grid: the codes' meaning; its scales were chosen before and stay as they are.
        statistics: what the solver's `needs` asked for.
        activation: the function between this layer and its only consumer, or None.
    """

    name: str
    weight: Float[Tensor, "groups rows cols"]
    grid: Grid
    statistics: S
    activation: Callable[[Tensor], Tensor] | None = None


@final
@dataclass(frozen=True)
class Rounding:
    """A solver's answer: the codes, int32 `[groups, rows, cols]`, each within the grid's codebook."""

    codes: Int[Tensor, "groups rows cols"]


class RoundingSolver(ABC, Generic[S]):
    """Chooses codes for one layer. Implementations are frozen dataclasses; their fields are the method's settings."""

    needs: ClassVar[type[Statistic]]

    @abstractmethod
    def solve(self, problem: Problem[S], generator: torch.Generator) -> Rounding:
        """Return codes for the problem; any randomness comes from `generator`, which lives on the CPU."""

    def work(self, rows_per_sample: int, samples: int) -> float:
        """How many times the layer is applied to one row, to plan time with; 0 for methods without data."""
        return 0.0


class RangeEstimator(ABC, Generic[S]):
    """Chooses a grid for one layer's weights. Implementations are frozen dataclasses."""

    needs: ClassVar[type[Statistic]]

    @abstractmethod
    def estimate(
        self,
        weight: Float[Tensor, "groups rows cols"],
        codebook: Codebook,
        granularity: Granularity,
        statistics: S,
        layer: str,
    ) -> Grid:
        """Return scales and zero points; `layer` is for messages."""
