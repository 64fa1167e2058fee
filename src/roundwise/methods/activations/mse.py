"""Mean squared error: the range with the smallest squared error of rounding and clipping together.

    min over low, high    Σ counts · (v − v̄)²         v̄ = v rounded to nearest on the grid of (low, high)

The sum is over the bins of a histogram, with middle v. First both extremes are multiplied by the same factor, then each
end alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.methods.interfaces import ActivationRanges
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Codebook, affine_grid
from roundwise.statistics import Histogram

AT_ONCE = 8
"""Candidates that are tried at once; more need more memory: each needs some 40 bytes for every bin."""


@final
@dataclass(frozen=True)
class ActivationMSE(ActivationRanges[Histogram]):
    """Minimise the squared error of the quantized values.

    Args:
        candidates: number of evenly spaced factors up to 1; more find a better range and take longer.
        keeps_negatives: False lets unsigned codes begin at 0.0, so that all values below 0 become 0, as LSQ does. After
            ReLU this changes nothing. Signed codes have negative numbers in any case.

    References:
        Banner et al., NeurIPS 2019, arXiv:1810.05723, which minimises the same error for a fitted density; here it is
        the error of the calibration values.
    """

    candidates: int = 100
    keeps_negatives: bool = True
    needs: ClassVar[type] = Histogram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"candidates must be at least 1": self.candidates >= 1})

    def limits(self, values: Histogram, codebook: Codebook) -> tuple[float, float]:
        factors = torch.arange(self.candidates, 0, -1, dtype=torch.float64) / self.candidates
        low, high = min(values.low, 0.0), max(values.high, 0.0)
        if not self.keeps_negatives and not codebook.symmetric and high > 0:
            low = 0.0
        best = _best(values, low * factors, high * factors, codebook)
        for _ in range(0 if codebook.symmetric or low == 0 or high == 0 else 2):
            best = _best(values, low * factors, factors.new_full(factors.shape, best[1]), codebook)
            best = _best(values, factors.new_full(factors.shape, best[0]), high * factors, codebook)
        return best


def _best(values: Histogram, low: Tensor, high: Tensor, codebook: Codebook) -> tuple[float, float]:
    """The interval with the smallest error; of equal ones the first."""
    middles, counts = values.bins
    errors = []
    for lows, highs in zip(low.split(AT_ONCE), high.split(AT_ONCE), strict=True):
        grid = affine_grid(lows[:, None, None], highs[:, None, None], codebook)
        errors.append((grid.fake_quantize(middles.expand(len(lows), 1, -1)) - middles).square() @ counts.double())
    choice = int(torch.cat(errors).argmin())
    return float(low[choice]), float(high[choice])
