"""Checks for every method for activation ranges. A check takes (method, batches of values, codebook)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roundwise.methods.interfaces import ActivationRanges
from roundwise.numerics.grid import Codebook
from roundwise.testing.requirement import checks_in, require, unchanged

Batches = Sequence[Tensor]


def value_cases() -> dict[str, Batches]:
    """Batches of values as they occur in networks, by a description."""
    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(4, 8, 5, 5, generator=generator) for _ in range(3)]
    outlier = [batch.clone() for batch in normal]
    outlier[1][0, 0, 0, 0] = 1e4
    return {
        "normal": normal,
        "after ReLU": [batch.relu() for batch in normal],
        "negative": [-batch.abs() - 1 for batch in normal],
        "constant": [torch.full((2, 3), 0.25)],
        "an outlier": outlier,
        "growing": [batch * 100**number for number, batch in enumerate(normal)],
        "tiny": [batch * 1e-12 for batch in normal],
        "a single number": [torch.tensor([3.0])],
        "half precision": [batch.bfloat16() for batch in normal],
    }


def limits(method: ActivationRanges[Any], batches: Batches, codebook: Codebook) -> tuple[float, float]:
    """The range that the method chooses, computed as the stream computes it."""
    statistic = method.needs()
    for batch in batches:
        statistic.add(batch)
    return method.limits(statistic, codebook)


def check_the_range_is_an_interval_within_what_was_seen(
    method: ActivationRanges[Any], batches: Batches, codebook: Codebook
) -> None:
    """The range is finite, not empty, and within the interval of all values and 0."""
    low, high = limits(method, batches, codebook)
    require(math.isfinite(low) and math.isfinite(high) and low <= high, f"the range is {low} to {high}")
    seen_low = min(0.0, *(float(batch.min()) for batch in batches))
    seen_high = max(0.0, *(float(batch.max()) for batch in batches))
    slack = 1e-6 * (seen_high - seen_low)
    require(seen_low - slack <= low and high <= seen_high + slack, f"{low} to {high} is beyond {seen_low}, {seen_high}")
    require(max(high, 0.0) > min(low, 0.0), "the range is empty, with 0 in it")


def check_the_same_values_give_the_same_range(
    method: ActivationRanges[Any], batches: Batches, codebook: Codebook
) -> None:
    """The range depends on the arguments alone. They are not changed, and no global random numbers are used."""
    with unchanged({f"the values of batch {number}": batch for number, batch in enumerate(batches)}):
        same = limits(method, batches, codebook) == limits(method, batches, codebook)
    require(same, "the same values gave two ranges")


def check_the_range_follows_the_unit(method: ActivationRanges[Any], batches: Batches, codebook: Codebook) -> None:
    """Values in another unit (times 8) give the range in that unit."""
    low, high = limits(method, batches, codebook)
    other = limits(method, [batch * 8 for batch in batches], codebook)
    tolerance = 1e-6 * max(abs(low), abs(high))
    require(abs(other[0] - 8 * low) <= 8 * tolerance, f"the low end became {other[0]}, not {8 * low}")
    require(abs(other[1] - 8 * high) <= 8 * tolerance, f"the high end became {other[1]}, not {8 * high}")


ACTIVATION_CHECKS: tuple[Callable[[ActivationRanges[Any], Batches, Codebook], None], ...] = checks_in(globals())
