"""Moving average of each batch's smallest and largest value: one batch with an outlier does not set the range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from roundwise.methods.interfaces import ActivationRanges
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Codebook
from roundwise.statistics import Extremes


@final
@dataclass(frozen=True)
class ActivationMovingAverage(ActivationRanges[Extremes]):
    """Average the extremes of the batches; later batches have more weight: a ← momentum · a + (1 − momentum) · new.

    The result depends on the size of batches, whose default depends on the device. Set the recipe's `batch_size` to get
    the same result on all devices.

    Args:
        momentum: from 0 (only the last batch counts) up to but not including 1. A larger value gives earlier batches
            more weight.

    References:
        Jacob et al., CVPR 2018, arXiv:1712.05877; there over the steps of training.
    """

    momentum: float = 0.9
    needs: ClassVar[type] = Extremes

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"momentum must be at least 0 and below 1": 0 <= self.momentum < 1})

    def limits(self, values: Extremes, codebook: Codebook) -> tuple[float, float]:
        low, high = values.lows[0], values.highs[0]
        for new_low, new_high in zip(values.lows[1:], values.highs[1:], strict=True):
            low = self.momentum * low + (1 - self.momentum) * new_low
            high = self.momentum * high + (1 - self.momentum) * new_high
        return low, high
