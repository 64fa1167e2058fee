"""ACIQ: fit a Laplace or normal distribution to the weights, and clip where its expected squared error is smallest.

Let X be a weight minus the mean weight. Q clips X to [−α, α] and rounds it to one of 2^M levels, which are 2α/2^M
apart. If the density f is nearly constant between two levels, the rounding error is uniformly distributed over this
distance, so that its variance is a twelfth of the distance squared. Clipping adds the error of both tails:

    E (X − Q(X))²  ≈  2 ∫_α^∞ (x − α)² f(x) dx  +  α² / (3 · 4^M)

A smaller α makes the levels finer and clips more. The best α is where the derivative is 0, for the two densities:

*Laplace*, f(x) = e^(−|x|/b) / 2b. The integral is 2 b² e^(−α/b), so

    −2 b e^(−α/b) + 2α / (3 · 4^M) = 0     ⇔     (α/b) e^(α/b) = 3 · 4^M                       α = b · 2.83, 3.90, 5.03

*Gauss*, with standard deviation σ, φ and Φ those of N(0, 1), and a = α/σ. The clipping term is
2 σ² ((1 + a²)(1 − Φ(a)) − a φ(a)), so

    2a (1 − Φ(a)) − 2 φ(a) + a / (3 · 4^M) = 0                                                  α = σ · 1.71, 2.15, 2.56

The numbers at the right are for M = 2, 3, 4. Each left side grows with α, so it has one root, which bisection finds. b
and σ are the maximum-likelihood estimates E|X| and √(E X²), for each set of weights that shares a scale.

*The distribution* with the larger likelihood at these estimates is used. Per weight the log-likelihood is −log 2b − 1
for a Laplace distribution and −log(σ √2π) − ½ for a normal one. So the Laplace distribution is used if
E|X| / √(E X²) < √(π/2e) ≈ 0.760.

Differences from the source: The grid always contains 0.0. A symmetric grid is centred at 0.0 instead of the mean, and
reaches to the end of the interval that is farther from 0.0. The interval is never larger than that of the weights
themselves; this matters if few weights share a scale. Every channel has the same number of bits, while the source also
has a rule for giving channels different numbers. The source's correction of the rounded weights is `NearestMoments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal, final

from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import RangeEstimator
from roundwise.methods.settings import check_types
from roundwise.numerics.grid import Codebook, Granularity, Grid, affine_grid, blocked
from roundwise.statistics import Nothing

EQUAL_LIKELIHOOD = math.sqrt(math.pi / (2 * math.e))
"""The value of E|X| / √(E X²) at which both distributions are equally likely; below it, Laplace is likelier."""


@final
@dataclass(frozen=True)
class ACIQ(RangeEstimator[Nothing]):
    """Clip the weights where a fitted Laplace or normal distribution has the smallest expected squared error.

    Args:
        distribution: "gauss", "laplace", or "auto": for each scale, the likelier of the two.

    Raises:
        RecipeError: the distribution is none of these.

    References:
        Banner et al., NeurIPS 2019, arXiv:1810.05723, Section 2.
    """

    distribution: Literal["gauss", "laplace", "auto"] = "auto"
    needs: ClassVar[type] = Nothing

    def __post_init__(self) -> None:
        check_types(self)

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
        centred = view - mean.unsqueeze(-1)
        spread, deviation = centred.abs().mean(-1), centred.square().mean(-1).sqrt()
        laplace, gauss = spread * laplace_clip(codebook.bits), deviation * gauss_clip(codebook.bits)
        if self.distribution == "auto":
            clip = laplace.where(spread < EQUAL_LIKELIHOOD * deviation, gauss)
        else:
            clip = laplace if self.distribution == "laplace" else gauss
        # If all weights are equal, the deviation is 0; the ends are then the weights themselves.
        flat = clip == 0
        low = view.amin(-1).maximum((mean - clip).masked_fill(flat, -math.inf))
        high = view.amax(-1).minimum((mean + clip).masked_fill(flat, math.inf))
        return affine_grid(low, high, codebook)


@cache
def laplace_clip(bits: int) -> float:
    """The best α/b for a Laplace distribution.

    Example:
        >>> [round(laplace_clip(bits), 4) for bits in (2, 3, 4)]
        [2.8307, 3.8972, 5.0286]
    """
    return _root(lambda x: x + math.log(x) - math.log(3) - bits * math.log(4))


@cache
def gauss_clip(bits: int) -> float:
    """The best α/σ for a normal distribution.

    Example:
        >>> [round(gauss_clip(bits), 4) for bits in (2, 3, 4)]
        [1.7106, 2.1516, 2.5591]
    """

    def slope(a: float) -> float:
        density, beyond = math.exp(-a * a / 2) / math.sqrt(2 * math.pi), math.erfc(a / math.sqrt(2)) / 2
        return 2 * a * beyond - 2 * density + a / (3 * 4.0**bits)

    return _root(slope)


def _root(increasing: Callable[[float], float]) -> float:
    """The root of an increasing function between 0 and 64, by bisection."""
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return low
