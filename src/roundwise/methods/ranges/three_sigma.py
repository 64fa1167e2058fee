"""Three sigma: the grid covers the mean of the weights plus and minus three standard deviations. LSQ+ starts from it.

    s = max(|μ − 3σ|, |μ + 3σ|) / 2^(b−1)

The scale depends on no single weight, so an outlier does not change the start of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import RangeEstimator
from roundwise.methods.settings import check_types
from roundwise.numerics.grid import Codebook, Granularity, Grid, affine_grid, blocked
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True)
class ThreeSigma(RangeEstimator[Nothing]):
    """Cover the mean weight plus and minus a number of standard deviations.

    Args:
        deviations: above 0. A larger number clips fewer weights and makes steps larger.

    Raises:
        RecipeError: the number is not above 0.

    References:
        Bhalgat et al., "LSQ+", CVPR Workshops 2020, arXiv:2004.09576, Section 3.2.
    """

    deviations: float = 3.0
    needs: ClassVar[type] = Nothing

    def __post_init__(self) -> None:
        check_types(self)
        if not self.deviations > 0:
            raise RecipeError(f"{self}: deviations must be above 0; 3 is usual.")

    def estimate(
        self,
        weight: Float[Tensor, "groups rows cols"],
        codebook: Codebook,
        granularity: Granularity,
        statistics: Nothing,
        layer: str,
    ) -> Grid:
        view = blocked(weight.double(), granularity, layer)
        mean = view.mean(-1)
        reach = self.deviations * (view - mean.unsqueeze(-1)).square().mean(-1).sqrt()
        low, high = mean - reach, mean + reach
        if codebook.symmetric:
            end = low.abs().maximum(high.abs())
            # The end in the formula is that of the codes below 0, of which there is one more.
            return affine_grid(-end, end * (codebook.qmax / -codebook.qmin), codebook)
        return affine_grid(low.maximum(view.amin(-1)), high.minimum(view.amax(-1)), codebook)
