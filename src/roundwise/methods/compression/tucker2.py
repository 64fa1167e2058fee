"""Tucker-2: a convolution becomes three, of which the middle one has the kernel and few channels on both sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Factorization, FactorizationProblem, Factorized, Size, without_taps
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.conjugate_gradients import balanced
from roundwise.numerics.ranks import ranks, some_ranks
from roundwise.numerics.tucker import Tucker2Problem

CHOICES = 12
"""Each of the two ranks has at most 12 values to choose from. More take longer to measure and gain little."""


@final
@dataclass(frozen=True)
class Tucker2(Factorization):
    """A convolution becomes 1 × 1 to `a` channels, k × k to `b` channels, and 1 × 1 to the outputs.

    Stride, padding and dilation are those of the middle layer; the bias goes to the last. A size is the pair (a, b).
    For each output position the chain takes Ci a + a b k² + b Co multiplications (with stride 1) instead of Ci Co k².

    Args:
        rounds: how often the first layer and the others are fitted to each other. More rounds take longer and lower the
            error less each.

    Raises:
        RecipeError: `rounds` is not a whole number of 0 or more.

    References:
        Kim et al., Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications, ICLR
        2016, arXiv:1511.06530.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"rounds must be 0 or more": self.rounds >= 0})

    def reason(self, layer: LinearMap) -> str:
        return without_taps(layer)

    def sizes(self, layer: LinearMap, multiple: int) -> Sequence[Size]:
        outputs, inputs = layer.weight_shape[:2]
        taps = math.prod(layer.kernel)
        first = some_ranks(ranks(min(inputs, outputs * taps), multiple), CHOICES)
        second = some_ranks(ranks(min(outputs, inputs * taps), multiple), CHOICES)
        return [(a, b) for a, b in itertools.product(first, second) if b <= a * taps and a <= b * taps]

    def parts(self, layer: LinearMap, size: Size) -> tuple[LinearMap, ...]:
        return layer.in_chain(size, (range(0), range(layer.dims), range(0)))

    def errors(self, problem: FactorizationProblem, sizes: Sequence[Size]) -> Sequence[float]:
        return _problem(problem).errors([(a, b) for a, b in sizes])

    def factorize(self, problem: FactorizationProblem, size: Size) -> Factorized:
        a, b = size
        cores = _problem(problem).solve((a, b), self.rounds)
        weights = balanced((cores.inputs, cores.kernel, cores.outputs))
        shapes = (part.weight_shape for part in self.parts(problem.layer, size))
        shaped = tuple(weight.reshape(shape) for weight, shape in zip(weights, shapes, strict=True))
        return Factorized(shaped, cores.matrix)


def _problem(problem: FactorizationProblem) -> Tucker2Problem:
    return Tucker2Problem(problem.regression, problem.metric, problem.layer.weight_shape[1])
