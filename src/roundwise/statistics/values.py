"""Statistics of the values of one activation, from which its range is estimated.

`Extremes` keeps the smallest and the largest value of every batch. `Histogram` also counts values in bins. The width of
its bins is a power of two. If a value lies outside of all bins, neighbouring bins are merged until it lies inside, so
that the counts stay exact, and the range need not be known before the first batch. There are 8,192 bins on each side of
zero; the largest value lies in the outer half of one side.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS = 1 << 14
"""Number of bins on both sides of zero together. More bins give finer ranges and take longer to search."""

COUNTED_PER_BATCH = 1 << 18
"""At most this many values of a batch are counted: of more, a random sample (with replacement, seeded). A larger number
takes longer and makes percentiles more exact."""


class ValueStatistic(ABC):
    """A summary of the values of one activation, made batch by batch.

    Attributes:
        lows, highs: the smallest and the largest value of each batch, in order.
        from_samples: whether it needs samples; False if a run without data can have it.
    """

    from_samples: ClassVar[bool] = True
    lows: list[float]
    highs: list[float]

    @abstractmethod
    def add(self, values: Tensor) -> None:
        """Add the activation's values for one batch, in any shape."""

    @property
    def low(self) -> float:
        """The smallest value of all batches; infinity if there was none."""
        return min(self.lows, default=math.inf)

    @property
    def high(self) -> float:
        """The largest value of all batches; minus infinity if there was none."""
        return max(self.highs, default=-math.inf)


@final
class Extremes(ValueStatistic):
    """The smallest and the largest value of each batch."""

    def __init__(self) -> None:
        self.lows, self.highs = [], []

    def add(self, values: Tensor) -> None:
        if values.numel():
            low, high = values.aminmax()
            self.lows.append(float(low))
            self.highs.append(float(high))


@final
class Histogram(ValueStatistic):
    """The smallest and the largest value of each batch, and a histogram of all values."""

    def __init__(self) -> None:
        self.lows, self.highs = [], []
        self._exponent = -126  # bins are 2 ** exponent wide
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
            return  # the range estimation raises an error that names the activation
        values = values.flatten()
        if len(values) > COUNTED_PER_BATCH:
            chosen = torch.randint(len(values), (COUNTED_PER_BATCH,), generator=self._generator)
            values = values[chosen.to(values.device)]
        values = values.double()
        self._merge_bins(largest)
        self._zeros += int((values == 0).sum())
        places = (values[values != 0] * 2.0**-self._exponent).floor().long() + BINS // 2
        self._counts += torch.bincount(places.clamp_(0, BINS - 1), minlength=BINS).cpu()

    def _merge_bins(self, largest: float) -> None:
        """Merge neighbouring bins until the largest magnitude lies in one."""
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
        """The middles (ascending) and counts of all bins that have values; exact zeros have a bin of their own."""
        filled = self._counts.nonzero().squeeze(1)
        middles = (filled.double() + 0.5 - BINS // 2) * 2.0**self._exponent
        counts = self._counts[filled]
        if self._zeros:
            at = int((middles < 0).sum())
            middles = torch.cat([middles[:at], middles.new_zeros(1), middles[at:]])
            counts = torch.cat([counts[:at], counts.new_tensor([self._zeros]), counts[at:]])
        return middles, counts
