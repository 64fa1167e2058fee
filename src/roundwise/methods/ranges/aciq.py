"""ACIQ: clip where the expected error is least, for a bell-shaped distribution fitted to the weights.

Let X be a weight less its mean, clipped at ±α and put on 2^M levels between, which are 2α/2^M apart. If the density is
about even between two levels, rounding has the variance of a uniform distribution that wide, a twelfth of its square;
clipping adds what lies beyond, twice by symmetry:

    E (X − Q(X))²  ≈  2 ∫_α^∞ (x − α)² f(x) dx  +  α² / (3 · 4^M)

More clipping makes steps finer. With the derivative at 0, for the two densities:

*Laplace*, f(x) = e^(−|x|/b) / 2b. The integral is 2 b² e^(−α/b), so

    −2 b e^(−α/b) + 2α / (3 · 4^M) = 0     ⇔     (α/b) e^(α/b) = 3 · 4^M                       α = b · 2.83, 3.90, 5.03

*Gauss*, with standard deviation σ, φ and Φ those of N(0, 1), and a = α/σ. The clipping term is
2 σ² ((1 + a²)(1 − Φ(a)) − a φ(a)), so

    2a (1 − Φ(a)) − 2 φ(a) + a / (3 · 4^M) = 0                                                  α = σ · 1.71, 2.15, 2.56

with the numbers for M = 2, 3, 4. Each left side grows with α, so its one root is found by halving an interval. b and σ
are the maximum-likelihood estimates E|X| and √(E X²), for each part of the matrix that shares a scale.

*Which of the two* fits better is told by the likelihoods at these estimates: −log 2b − 1 for a Laplace distribution and
−log(σ √2π) − ½ for a normal one, per weight. So it is the Laplace distribution if E|X| / √(E X²) < √(π/2e) ≈ 0.760.

What differs from the source: the grid always contains 0.0, and a symmetric one is centred there and not at the mean, so
that it reaches as far as the farther end asks. The interval never exceeds that of the weights themselves, which can be
narrower than the distribution's where few weights share a scale. Every channel gets the same number of bits; the source
also has a rule to give channels different ones. Its correction of the rounded weights is `NearestMoments`.
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

EVEN = math.sqrt(math.pi / (2 * math.e))
"""E|X| / √(E X²) where both distributions are equally likely."""


@final
@dataclass(frozen=True)
class ACIQ(RangeEstimator[Nothing]):
    """Clip where a Laplace or normal distribution of the weights loses least, by formula.

    Args:
        distribution: "gauss", "laplace", or "auto" for the likelier one of each part that shares a scale.

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
            clip = laplace.where(spread < EVEN * deviation, gauss)
        else:
            clip = laplace if self.distribution == "laplace" else gauss
        # Equal weights have no spread: then the ends are the weights themselves.
        flat = clip == 0
        low = view.amin(-1).maximum((mean - clip).masked_fill(flat, -math.inf))
        high = view.amax(-1).minimum((mean + clip).masked_fill(flat, math.inf))
        return affine_grid(low, high, codebook)


@cache
def laplace_clip(bits: int) -> float:
    """α/b that is best for a Laplace distribution.

    Example:
        >>> [round(laplace_clip(bits), 4) for bits in (2, 3, 4)]
        [2.8307, 3.8972, 5.0286]
    """
    return _root(lambda x: x + math.log(x) - math.log(3) - bits * math.log(4))


@cache
def gauss_clip(bits: int) -> float:
    """α/σ that is best for a normal distribution.

    Example:
        >>> [round(gauss_clip(bits), 4) for bits in (2, 3, 4)]
        [1.7106, 2.1516, 2.5591]
    """

    def slope(a: float) -> float:
        density, beyond = math.exp(-a * a / 2) / math.sqrt(2 * math.pi), math.erfc(a / math.sqrt(2)) / 2
        return 2 * a * beyond - 2 * density + a / (3 * 4.0**bits)

    return _root(slope)


def _root(increasing: Callable[[float], float]) -> float:
    """Where a function that increases from below zero changes its sign, between 0 and 64."""
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if increasing(middle) < 0 else (low, middle)
    return low
