"""Min-max for activations: nothing that the calibration samples showed is clipped. What the paper uses (Section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from roundwise.methods.interfaces import ActivationRanges
from roundwise.numerics.grid import Codebook
from roundwise.statistics import Extremes


@final
@dataclass(frozen=True)
class ActivationMinMax(ActivationRanges[Extremes]):
    """Let the smallest and the largest value be the ends of the range.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Section 5, "ImageNet".
    """

    needs: ClassVar[type] = Extremes

    def limits(self, values: Extremes, codebook: Codebook) -> tuple[float, float]:
        return values.low, values.high
