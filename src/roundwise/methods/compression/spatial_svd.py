"""Spatial SVD: a convolution becomes a vertical and a horizontal one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Factorization, FactorizationProblem, Factorized, Size, without_two_dimensions
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.ranks import ranks
from roundwise.numerics.two_factors import TwoFactors


@final
@dataclass(frozen=True)
class SpatialSVD(Factorization):
    """A k × k convolution becomes k × 1 with `rank` output channels, then 1 × k. The bias goes to the second.

    Stride, padding and dilation are divided between the two, so that both compute exactly what one did if the rank is
    not limited. Of a 3d convolution, the first layer has the first dimension of the kernel, the second the others.

    Args:
        rounds: how often both factors are fitted to each other, after the second was fitted to the first. More rounds
            take longer and lower the error less each.

    Raises:
        RecipeError: `rounds` is not a whole number of 0 or more.

    References:
        Jaderberg et al., Speeding up Convolutional Neural Networks with Low Rank Expansions, BMVC 2014.
        Kuzmin et al., Taxonomy and Evaluation of Structured Compression of CNNs, arXiv:1912.09802, 2019.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"rounds must be 0 or more": self.rounds >= 0})

    def reason(self, layer: LinearMap) -> str:
        return without_two_dimensions(layer)

    def sizes(self, layer: LinearMap, multiple: int) -> Sequence[Size]:
        inputs, outputs = layer.weight_shape[1], layer.weight_shape[0]
        taps1, taps2 = _taps(layer)
        return [(rank,) for rank in ranks(min(inputs * taps1, outputs * taps2), multiple)]

    def parts(self, layer: LinearMap, size: Size) -> tuple[LinearMap, ...]:
        return layer.in_two(size[0], first=1)

    def errors(self, problem: FactorizationProblem, sizes: Sequence[Size]) -> Sequence[float]:
        errors = _problem(problem).errors()
        return [float(errors[rank]) for (rank,) in sizes]

    def factorize(self, problem: FactorizationProblem, size: Size) -> Factorized:
        factors = _problem(problem).solve(size[0], self.rounds)
        one, two = self.parts(problem.layer, size)
        weights = factors.first.reshape(one.weight_shape), factors.second.reshape(two.weight_shape)
        return Factorized(weights, factors.matrix)


def _problem(problem: FactorizationProblem) -> TwoFactors:
    layer = problem.layer
    return TwoFactors(problem.regression, problem.metric, layer.weight_shape[1], _taps(layer))


def _taps(layer: LinearMap) -> tuple[int, int]:
    """The taps of the kernel that each of the two layers has."""
    return layer.kernel[0], math.prod(layer.kernel[1:])
