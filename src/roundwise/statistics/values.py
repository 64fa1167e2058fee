"""What is learnt about the values of one tensor between operations, for choosing its range.

`Extremes` keeps the smallest and the largest value of every batch. `Histogram` also counts the values in bins whose
width is a power of two: when a value does not fit, neighbouring bins are merged until it does, so that nothing need be
known before the first batch comes, and the counts stay exact. There are bins for 8,192 widths on each side of zero, of
which the largest value uses more than half.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 1 << 14
"""Bins on both sides of zero together."""

COUNTED = 1 << 18
"""Values of one batch that are counted at most, drawn at random (with replacement, seeded) where there are more."""


class ValueStatistic(ABC):
    """What the values of one tensor are reduced to, batch by batch.

    Attributes:
        lows, highs: the smallest and the largest value of each batch, in order.
        from_samples: whether it is learnt from samples; False where a run without data can have it.
    """

    from_samples: ClassVar[bool] = True
    lows: list[float]
    highs: list[float]

    @abstractmethod
    def add(self, values: Tensor) -> None:
        """Take in the tensor's values for one batch, of any shape."""

    @property
    def low(self) -> float:
        """The smallest value of all; infinite if there was none."""
        return min(self.lows, default=math.inf)

    @property
    def high(self) -> float:
        """The largest value of all; minus infinity if there was none."""
        return max(self.highs, default=-math.inf)


@final
class Extremes(ValueStatistic):
    """The smallest and the largest value of each batch, and no more."""

    def __init__(self) -> None:
        self.lows, self.highs = [], []

    def add(self, values: Tensor) -> None:
        if values.numel():
            low, high = values.aminmax()
            self.lows.append(float(low))
            self.highs.append(float(high))


@final
class Histogram(ValueStatistic):
    """Extremes, and how many values lie where."""

    def __init__(self) -> None:
        self.lows, self.highs = [], []
        self._exponent = -126  # of the bins' width
        self._counts = torch.zeros(BINS, dtype=torch.int64)
        self._zeros = 0
        self._generator = torch.Generator().manual_seed(0)

    def add(self, values: Tensor) -> None:
        if not values.numel():
            return
        low, high = values.aminmax()
        self.lows.append(float(low))
        self.highs.append(float(high))
        largest = max(-self.lows[-1], self.highs[-1])
        if not math.isfinite(largest):
            return  # an error for whoever asks for a range
        values = values.flatten()
        if len(values) > COUNTED:
            chosen = torch.randint(len(values), (COUNTED,), generator=self._generator)
            values = values[chosen.to(values.device)]
        values = values.double()
        self._make_room(largest)
        self._zeros += int((values == 0).sum())
        places = (values[values != 0] * 2.0**-self._exponent).floor().long() + BINS // 2
        self._counts += torch.bincount(places.clamp_(0, BINS - 1), minlength=BINS).cpu()

    def _make_room(self, largest: float) -> None:
        """Merge bins until the largest magnitude lies inside."""
        needed = math.frexp(largest)[1] - int(math.log2(BINS // 2)) if largest else self._exponent
        steps = needed - self._exponent
        if steps <= 0:
            return
        self._exponent = needed
        merged = self._counts.view(-1, 1 << min(steps, int(math.log2(BINS // 2)))).sum(1)
        self._counts = torch.zeros_like(self._counts)
        middle, half = BINS // 2, len(merged) // 2
        self._counts[middle - half : middle + half] = merged

    @property
    def bins(self) -> tuple[Float[Tensor, "bins"], Int[Tensor, "bins"]]:
        """The middles, ascending, and counts of all bins that have values; exact zeros are a bin of their own."""
        filled = self._counts.nonzero().squeeze(1)
        middles = (filled.double() + 0.5 - BINS // 2) * 2.0**self._exponent
        counts = self._counts[filled]
        if self._zeros:
            at = int((middles < 0).sum())
            middles = torch.cat([middles[:at], middles.new_zeros(1), middles[at:]])
            counts = torch.cat([counts[:at], counts.new_tensor([self._zeros]), counts[at:]])
        return middles, counts
