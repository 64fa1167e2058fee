"""Differences of two networks' values, summed by the size of the values: it shows masks, and what a sum hides.

A *mask* is one huge number that a network writes in the place of values that do not count. Values are a mask if, in
both networks and at the same positions, they all lie within 1 % of one number, are at least `HUGE`, and are at least
`GAP` times as large as all other values. The values themselves prove it, so nobody has to say which number it is:

- If they are one number up to the precision of their dtype, they count for nothing.
- Otherwise real values were added to it (a logit − 10,000). Then y and ŷ count as their distances from the mean of y.

Values go into one bin for each binary exponent of max(|y|, |ŷ|) and each sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

HUGE = 1000.0
"""The smallest magnitude of a mask. If it were larger, masks of −1e4 would count as values; if it were smaller, values
near a bound, such as probabilities near 1, could count as a mask."""

GAP = 16.0
"""A mask is at least 16 times as large as all other values. With a larger factor, masks near values are missed."""

ALIKE = 0.01
"""Numbers of a mask differ by at most 1 %. With more, large values that hardly vary count as a mask."""

PRECISE = 16.0
"""Numbers that differ by at most 16 times the precision of their dtype are one number: rounding took what was added."""

DOMINANT = 0.999
"""Values that hold 99.9 % of Σy² hide the errors of the others. With a larger share, fewer outputs get a note."""

FEW = 0.9
"""A note is made if at most 90 % of the values or channels hold nearly all of Σy²; a larger share makes more notes."""

HIDDEN = 10.0
"""A note is made if the error of the others is at least ten times that of all; a larger factor makes fewer notes."""

EXPONENTS, LOWEST = 2200, -1100
"""Number of binary exponents of float64, and a number below the smallest of them."""

SLICE = 1 << 16
"""Numbers that are put into bins at once: 512 KiB in float64. More may not fit in the processor's cache."""


class Dominance(NamedTuple):
    """Few parts hold nearly all of Σy²: how many, their share, and the error of the others."""

    most: int
    share: float
    error_of_others: float


def dominance(
    energies: Sequence[float], distances: Sequence[float], counts: Sequence[int], error: float
) -> Dominance | None:
    """Whether the first parts hold nearly all of Σy² and the error of the others is much larger than that of all.

    Args:
        energies, distances, counts: Σy², Σ(y − ŷ)² and number of values of each part, largest Σy² first.
        error: of all parts.
    """
    total = sum(energies)
    if not 0 < total < math.inf:
        return None
    held, most = 0.0, 0
    while held < DOMINANT * total:
        held, most = held + energies[most], most + 1
    rest = sum(energies[most:])
    few = sum(counts[:most]) <= FEW * sum(count for count, size in zip(counts, energies, strict=True) if size)
    of_others = sum(distances[most:]) / rest if rest else 0.0
    if not few or of_others < HIDDEN * error or not of_others:
        return None
    return Dominance(most, held / total, of_others)


@final
@dataclass(frozen=True)
class Mask:
    """A mask: the mean of its numbers, at how many positions it is, and whether it is one number exactly."""

    value: float
    count: int
    exact: bool

    def note(self, values: int) -> str:
        """What the mask means for the error, in words."""
        what = "they are left out" if self.exact else "they count as their distances from that"
        return f"{self.count:,} of {values:,} values are near {self.value:.4g} in both networks, a mask: {what}"


@final
@dataclass(frozen=True)
class Counted:
    """What is left without masks.

    Attributes:
        count: number of values that count; those around the mean of a mask are among them.
        energy, distance: Σy², Σ(y − ŷ)².
        largest: max |y| of the values that are in no mask.
        largest_difference: max |y − ŷ|.
        bins: for each binary exponent, largest first: Σy², Σ(y − ŷ)², the number and the largest magnitude of the
            values that are in no mask.
    """

    count: int
    energy: float
    distance: float
    largest: float
    largest_difference: float
    bins: list[tuple[float, float, int, float]]

    def dominance(self, error: float) -> str:
        """What the error says nothing about if few large values hold nearly all of Σy²; empty if it is not so."""
        if not self.bins:
            return ""
        energies, distances, counts, largest = zip(*self.bins, strict=True)
        found = dominance(energies, distances, counts, error)
        if found is None or largest[found.most - 1] < GAP * largest[found.most]:
            return ""
        return (
            f"{sum(counts[: found.most]):,} of {self.count:,} values hold {found.share:.2%} of Σy², so the error is "
            f"theirs; that of the values up to {largest[found.most]:.3g} is {found.error_of_others:.3g}"
        )


@final
class Magnitudes:
    """Sums for each bin of values."""

    def __init__(self) -> None:
        bins = 2 * EXPONENTS  # of positive values, then of negative ones
        self._counts = torch.zeros(bins, dtype=torch.int64)
        self._sums, self._energies, self._distances = torch.zeros(3, bins, dtype=torch.float64)
        self._sizes, self._differences = torch.zeros(2, bins, dtype=torch.float64)  # max |y| and max |y − ŷ|
        self._lows, self._highs = (torch.full((bins,), end * math.inf, dtype=torch.float64) for end in (1, -1))

    def add(self, found: Tensor, expected: Tensor) -> None:
        """Add finite values ŷ and y, which have the same shape."""
        for y, y_hat in zip(expected.flatten().split(SLICE), found.flatten().split(SLICE), strict=True):
            self._add(y_hat.cpu().double(), y.cpu().double())

    def _add(self, found: Tensor, expected: Tensor) -> None:
        larger = torch.where(found.abs() > expected.abs(), found, expected)
        exponents = torch.where(larger == 0, LOWEST, torch.frexp(larger).exponent) - LOWEST
        places = torch.where(larger < 0, exponents + EXPONENTS, exponents).long()
        differences, bins = (expected - found).abs(), len(self._counts)

        def summed(values: Tensor) -> Tensor:
            return torch.bincount(places, values, minlength=bins)

        self._counts += torch.bincount(places, minlength=bins)
        self._sums += summed(expected)
        self._energies += summed(expected.square())
        self._distances += summed(differences.square())
        self._sizes.scatter_reduce_(0, places, expected.abs(), "amax")
        self._differences.scatter_reduce_(0, places, differences, "amax")
        self._lows.scatter_reduce_(0, places, torch.minimum(expected, found), "amin")
        self._highs.scatter_reduce_(0, places, torch.maximum(expected, found), "amax")

    def without_masks(self, precision: float) -> tuple[Counted, list[Mask]]:
        """The sums without masks, and the masks; `precision` is that of the values' dtype."""
        left = self._counts > 0
        masks: list[Mask] = []
        around = [0.0, 0.0, 0.0]  # Σ(y − mean)², Σ(y − ŷ)² and max |y − ŷ| of masks to which real values were added
        while (group := self._top_group(left)) is not None:
            left &= ~group
            count, total = int(self._counts[group].sum()), float(self._sums[group].sum())
            mean = total / count
            apart = self._highs[group].max() - self._lows[group].min()
            exact = float(apart) <= min(PRECISE * precision, ALIKE) * abs(mean)
            masks.append(Mask(mean, count, exact))
            if not exact:
                around[0] += max(0.0, float(self._energies[group].sum()) - total * mean)
                around[1] += float(self._distances[group].sum())
                around[2] = max(around[2], float(self._differences[group].max()))
        counted = Counted(
            count=int(self._counts[left].sum()) + sum(mask.count for mask in masks if not mask.exact),
            energy=float(self._energies[left].sum()) + around[0],
            distance=float(self._distances[left].sum()) + around[1],
            largest=float(self._sizes[left].max()) if left.any() else 0.0,
            largest_difference=max(around[2], float(self._differences[left].max()) if left.any() else 0.0),
            bins=self._by_exponent(left),
        )
        return counted, masks

    def _top_group(self, left: Tensor) -> Tensor | None:
        """The bins of the largest values of one sign, if they are a mask; else None."""
        sizes = torch.where(left, self._lows.abs().maximum(self._highs.abs()), -1.0)
        top = int(sizes.argmax())
        if sizes[top] < HUGE:
            return None
        group = torch.zeros_like(left)
        group[top] = True
        if top % EXPONENTS > 0 and left[top - 1] and sizes[top - 1] >= (1 - ALIKE) * sizes[top]:
            group[top - 1] = True  # the number is near a power of two
        low, high = float(self._lows[group].min()), float(self._highs[group].max())
        others = self._largest(left & ~group)
        alike = low * high > 0 and high - low <= ALIKE * min(abs(low), abs(high))
        return group if alike and 0 < others * GAP <= min(abs(low), abs(high)) else None

    def _largest(self, bins: Tensor) -> float:
        """The largest magnitude in some bins; 0 if they are empty."""
        sizes = self._lows[bins].abs().maximum(self._highs[bins].abs())
        return float(sizes.max()) if len(sizes) else 0.0

    def _by_exponent(self, bins: Tensor) -> list[tuple[float, float, int, float]]:
        sizes = torch.where(bins, self._lows.abs().maximum(self._highs.abs()), 0.0)
        columns = (
            (torch.where(bins, values, 0)).reshape(2, EXPONENTS).sum(0)
            for values in (self._energies, self._distances, self._counts)
        )
        energies, distances, counts = (column.tolist() for column in columns)
        largest = sizes.reshape(2, EXPONENTS).amax(0).tolist()
        return [one for one in zip(energies, distances, counts, largest, strict=True) if one[2]][::-1]
