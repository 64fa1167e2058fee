"""Mean magnitude for activations: the scale follows from the mean of |x| alone. LSQ starts its training from it.

    s = 2 E|x| / √qmax

Unsigned codes begin at 0.0: values below 0 are lost, as in LSQ, which is made for ReLU. The range never reaches beyond
the values that were seen, as the formula would at 8 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from roundwise.methods.interfaces import ActivationRanges
from roundwise.numerics.grid import Codebook
from roundwise.statistics import Histogram


@final
@dataclass(frozen=True)
class ActivationMeanMagnitude(ActivationRanges[Histogram]):
    """Take 2 E|x| / √qmax as the scale, for learned scales to start from.

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153, Section 2.1.
    """

    needs: ClassVar[type] = Histogram

    def limits(self, values: Histogram, codebook: Codebook) -> tuple[float, float]:
        middles, counts = values.bins
        mean = float((middles.abs() * counts).sum() / counts.sum())
        scale = 2 * mean / math.sqrt(codebook.qmax)
        if values.high <= 0:  # unsigned codes from 0.0 up would stand for none of them
            return max(-codebook.qmax * scale, values.low), 0.0
        return max(codebook.qmin * scale, min(values.low, 0.0)), min(codebook.qmax * scale, max(values.high, 0.0))
