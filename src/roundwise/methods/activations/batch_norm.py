"""Ranges of activations from batch-norm's statistics: no samples are needed.

    low = smallest β − n γ of a share of the channels          high = largest β + n γ of a share of the channels

Batch-norm gave each channel the mean β and the standard deviation γ. `graph/analysis/moments.py` follows them through
the graph; a ReLU or another clamp clips the interval.

The source uses all channels. But channels are not normally distributed, and one channel of hundreds may have a γ that
has little effect until equalization makes it large; this channel then sets the range for all. In MobileNetV2, β and γ
give one of 960 channels an upper end of 2,110; on 8 images its values are all below 0, and no channel of the tensor has
values above 15. So by default the range leaves out one channel in 200, and none if there are 200 or fewer.

Batch-norm's statistics say nothing about the network's input, so its limits must be given. For an image with pixels p
in [0, 1], which becomes (p − mean)/std, they are the smallest (0 − mean)/std and the largest (1 − mean)/std.
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
    """Cover batch-norm's means plus and minus a number of standard deviations; needs no data.

    Args:
        deviations: n, above 0. A larger n clips fewer values and makes steps larger.
        channels: the share of the channels that the range must cover, above 0 and up to 1; in the source it is 1.
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
