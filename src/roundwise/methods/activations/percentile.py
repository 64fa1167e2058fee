"""Percentiles: a given share of the values lies outside of the range, half of it on each side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import ActivationRanges
from roundwise.methods.settings import check_types
from roundwise.numerics.grid import Codebook
from roundwise.statistics import Histogram

SMALLEST = 50
"""The smallest percentage. A smaller one, such as 0.999, is a mistake: somebody means a fraction."""


@final
@dataclass(frozen=True)
class ActivationPercentile(ActivationRanges[Histogram]):
    """Cover all but the most extreme values.

    Args:
        covered: share of the values inside the range, in percent, at least 50; the others are clipped, half below and
            half above.

    Raises:
        RecipeError: `covered` is out of range or not a number.

    References:
        Wu et al. 2020, arXiv:2004.09602 (percentile calibration).
    """

    covered: float = 99.99
    needs: ClassVar[type] = Histogram

    def __post_init__(self) -> None:
        check_types(self)
        if not SMALLEST <= self.covered <= 100:
            meant = f" Write {100 * self.covered:.10g}, not {self.covered!r}." if 0.5 <= self.covered <= 1 else ""
            raise RecipeError(
                f"{self}: covered is the percentage of the values that the range covers; it must be from {SMALLEST} to "
                f"100, because a smaller range would clip most values.{meant}"
            )

    def limits(self, values: Histogram, codebook: Codebook) -> tuple[float, float]:
        middles, counts = values.bins
        below = counts.cumsum(0).double() / counts.sum()
        outside = (100 - self.covered) / 200
        first = int((below > outside).nonzero()[0])
        last = int(torch.searchsorted(below, 1 - outside).clamp(max=len(below) - 1))
        # If nothing is clipped, the end is the extreme value itself and not the middle of its bin.
        low = values.low if first == 0 else float(middles[first])
        high = values.high if last == len(below) - 1 else float(middles[last])
        return low, high
