"""Weight SVD: a layer becomes two with few channels between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Factorization, FactorizationProblem, Factorized, Size
from roundwise.methods.settings import check_types
from roundwise.numerics.ranks import ranks
from roundwise.numerics.two_factors import TwoFactors

ROUNDS = 3
"""With the kernel in the last layer, both factors are fitted to each other 3 times; more gains little."""


@final
@dataclass(frozen=True)
class WeightSVD(Factorization):
    """A layer becomes two with `rank` channels between them; one of them has the kernel, the other is 1 × 1.

    A linear layer becomes two linear layers. On samples this is reduced-rank regression, solved exactly: the map of
    this rank that is nearest to the original outputs, not the matrix that is nearest to the weights.

    Args:
        kernel: which of the two has the kernel, and the stride: "first" is the decomposition of Zhang et al.; "last"
            reduces the input channels. It makes no difference for linear and 1 × 1 layers, except that with "first" a
            stride makes both of them cheaper.
        pointwise: whether 1 × 1 convolutions are replaced too.

    Raises:
        RecipeError: a setting is something else.

    References:
        Zhang et al., Accelerating Very Deep Convolutional Networks for Classification and Detection, TPAMI 2016.
        Kuzmin et al., Taxonomy and Evaluation of Structured Compression of CNNs, arXiv:1912.09802, 2019.
    """

    kernel: Literal["first", "last"] = "first"
    pointwise: bool = True

    def __post_init__(self) -> None:
        check_types(self)

    def reason(self, layer: LinearMap) -> str:
        if layer.transposed or layer.groups > 1:
            return "it is a transposed convolution" if layer.transposed else f"it has {layer.groups} groups"
        if layer.dims and math.prod(layer.kernel) == 1 and not self.pointwise:
            return "it is a 1 × 1 convolution"
        return ""

    def sizes(self, layer: LinearMap, multiple: int) -> Sequence[Size]:
        outputs, inputs = layer.weight_shape[:2]
        taps1, taps2 = self._taps(layer)
        return [(rank,) for rank in ranks(min(inputs * taps1, outputs * taps2), multiple)]

    def parts(self, layer: LinearMap, size: Size) -> tuple[LinearMap, ...]:
        return layer.in_two(size[0], first=layer.dims if self.kernel == "first" else 0)

    def errors(self, problem: FactorizationProblem, sizes: Sequence[Size]) -> Sequence[float]:
        errors = self._problem(problem).errors()
        return [float(errors[rank]) for (rank,) in sizes]

    def factorize(self, problem: FactorizationProblem, size: Size) -> Factorized:
        factors = self._problem(problem).solve(size[0], ROUNDS)
        one, two = self.parts(problem.layer, size)
        weights = factors.first.reshape(one.weight_shape), factors.second.reshape(two.weight_shape)
        return Factorized(weights, factors.matrix)

    def _problem(self, problem: FactorizationProblem) -> TwoFactors:
        return TwoFactors(problem.regression, problem.metric, problem.layer.weight_shape[1], self._taps(problem.layer))

    def _taps(self, layer: LinearMap) -> tuple[int, int]:
        """The taps of the kernel that each of the two layers has."""
        taps = math.prod(layer.kernel)
        return (taps, 1) if self.kernel == "first" else (1, taps)
