"""Ranges from batch-norm's statistics: no sample is needed.

    low = least β − n γ of a share of the channels          high = largest β + n γ of a share of the channels

with the mean β and deviation γ that batch-norm gave each channel, cut where a ReLU or another clamp cuts the values,
and carried along the graph by `graph/analysis/moments.py`. The source takes all channels. But channels are not normal,
and of hundreds one may have a γ that hardly matters until equalization makes it large, and then sets the range for all:
in MobileNetV2 one of 960 channels reaches up to 2,110 by its β and γ, while on 8 images it stays below 0 and no channel
of that tensor goes beyond 15. So by default one channel in 200 may reach beyond the range; of 200 or fewer none.

Of the network's input batch-norm knows nothing. Its limits must be given: for an image with pixels in [0, 1], less a
mean and divided by a deviation, they are the smallest (0 − mean)/std and the largest (1 − mean)/std.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import ActivationRanges
from roundwise.methods.settings import check_types
from roundwise.numerics.grid import Codebook
from roundwise.statistics import ExpectedValues


@final
@dataclass(frozen=True)
class ActivationBatchNorm(ActivationRanges[ExpectedValues]):
    """Cover so many of batch-norm's deviations around its means; needs no data.

    Args:
        deviations: n, above 0.
        channels: the share of the channels whose reach sets the range, above 0 and up to 1; the source has 1.
        input_low, input_high: the smallest and the largest number in the network's inputs; both or none.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, where n is 6 and all channels count.
    """

    deviations: float = 6.0
    channels: float = 0.995
    input_low: float | None = None
    input_high: float | None = None
    needs: ClassVar[type] = ExpectedValues

    def __post_init__(self) -> None:
        check_types(self)
        if not self.deviations > 0:
            raise RecipeError(
                f"{self}: the range of a channel goes from its mean − deviations · std to its mean + deviations · "
                "std, so deviations must be above 0; 6 is usual."
            )
        if not 0 < self.channels <= 1:
            raise RecipeError(
                f"{self}: channels is the share of a tensor's channels that its range covers; it must be above 0 and "
                "at most 1."
            )
        if (self.input_low is None) != (self.input_high is None):
            raise RecipeError(
                f"{self}: the range of the network's inputs has two ends, input_low and input_high, and one of them "
                "is missing. Give both, or neither."
            )
        if self.input_low is not None and self.input_high is not None and self.input_low >= self.input_high:
            raise RecipeError(f"{self}: the range from input_low to input_high is empty; input_low must be lower.")

    def limits(self, values: ExpectedValues, codebook: Codebook) -> tuple[float, float]:
        if values.spread is not None:
            return values.spread.limits(self.deviations, self.channels)
        if self.input_low is not None and self.input_high is not None:
            return self.input_low, self.input_high
        raise RecipeError(
            f"{self}: no batch-norm tells the mean and the deviation of these values, and their limits are not given. "
            "Give input_low and input_high, or calibration samples and ranges that are read off them."
        )
