"""Mean magnitude: the scale follows from the mean of |w| alone. LSQ starts its training from it.

    s = 2 E|w| / √qmax

It is meant as a start, from which the scale is learned. Without training it clips many weights at few bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import RangeEstimator
from roundwise.numerics.grid import Codebook, Granularity, Grid, affine_grid, blocked
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True)
class MeanMagnitude(RangeEstimator[Nothing]):
    """Take 2 E|w| / √qmax as the scale, for learned scales to start from.

    On an asymmetric grid the codes reach as far on both sides of 0.0, and not beyond the weights.

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153, Section 2.1.
    """

    needs: ClassVar[type] = Nothing

    def estimate(
        self,
        weight: Float[Tensor, "groups rows cols"],
        codebook: Codebook,
        granularity: Granularity,
        statistics: Nothing,
        layer: str,
    ) -> Grid:
        view = blocked(weight.double(), granularity, layer)
        largest = Codebook(codebook.bits).qmax
        end = 2 * view.abs().mean(-1) / math.sqrt(largest) * largest
        if codebook.symmetric:
            return affine_grid(-end, end, codebook)
        return affine_grid((-end).maximum(view.amin(-1)), end.minimum(view.amax(-1)), codebook)
