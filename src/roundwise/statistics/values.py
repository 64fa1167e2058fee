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


HUGE, GAP, ALIKE = 1e3, 1e3, 4.0
"""Values are huge if the largest is at least `HUGE`, they lie within a factor `ALIKE` of it, and all others are more
than `GAP` times smaller. Attention masks add such values. With larger `HUGE` or `GAP`, or smaller `ALIKE`, fewer
tensors have huge values."""


class ValueStatistic(ABC):
    """A summary of the values of one activation, made batch by batch.

    Attributes:
        lows, highs: the smallest and the largest value of each batch, in order.
        ordinary: the largest absolute value of each batch; where it has huge values, that of the others.
        from_samples: whether it needs samples; False if a run without data can have it.
    """

    from_samples: ClassVar[bool] = True
    lows: list[float]
    highs: list[float]
    ordinary: list[float]

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

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return all(map(math.isfinite, (*self.lows, *self.highs)))

    @property
    def largest_ordinary(self) -> float:
        """The largest absolute value; where there are huge values, that of the others, or 0 without others."""
        sizes = [max(-low, high) for low, high in zip(self.lows, self.highs, strict=True)]
        largest = max(sizes, default=0.0)
        if any(largest / GAP <= size < largest / ALIKE for size in sizes):
            return largest  # values between the huge and the ordinary ones: no gap
        return max((ordinary for ordinary in self.ordinary if ordinary < largest / GAP), default=largest)


@final
class Extremes(ValueStatistic):
    """The smallest and the largest value of each batch."""

    def __init__(self) -> None:
        self.lows, self.highs, self.ordinary = [], [], []

    def add(self, values: Tensor) -> None:
        if values.numel():
            _note_extremes(self, values)


@final
class Histogram(ValueStatistic):
    """The smallest and the largest value of each batch, and a histogram of all values."""

    def __init__(self) -> None:
        self.lows, self.highs, self.ordinary = [], [], []
        self._exponent = -126  # bins are 2 ** exponent wide
        self._counts = torch.zeros(BINS, dtype=torch.int64)
        self._zeros = 0
        self._generator = torch.Generator().manual_seed(0)

    def add(self, values: Tensor) -> None:
        if not values.numel():
            return
        largest = _note_extremes(self, values)
        if not math.isfinite(largest):
            return  # no range is estimated: the activation stays in float
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


def _note_extremes(statistic: ValueStatistic, values: Tensor) -> float:
    """Note the smallest, the largest and the largest ordinary value of a batch; return the largest absolute value."""
    low, high = (float(end) for end in values.aminmax())
    largest = math.nan if math.isnan(low) else max(-low, high)
    ordinary = largest
    if HUGE <= largest < math.inf:
        sizes = values.abs()
        if not bool(((sizes >= largest / GAP) & (sizes < largest / ALIKE)).any()):
            ordinary = float(sizes.where(sizes < largest / GAP, 0).max())
    statistic.lows.append(low)
    statistic.highs.append(high)
    statistic.ordinary.append(ordinary)
    return largest
