"""Min-max for activations: no value of the calibration samples is clipped. The paper uses this (Section 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from roundwise.methods.interfaces import ActivationRanges
from roundwise.numerics.grid import Codebook
from roundwise.statistics import Extremes


@final
@dataclass(frozen=True)
class ActivationMinMax(ActivationRanges[Extremes]):
    """Use the smallest and the largest value as the ends of the range.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Section 5, "ImageNet".
    """

    needs: ClassVar[type] = Extremes

    def limits(self, values: Extremes, codebook: Codebook) -> tuple[float, float]:
        return values.low, values.high
