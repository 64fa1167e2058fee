"""Tensor train: a convolution becomes four, one for each dimension of its weight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Factorization, FactorizationProblem, Factorized, Size, without_two_dimensions
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.conjugate_gradients import balanced
from roundwise.numerics.ranks import never_rising, ranks, some_ranks
from roundwise.numerics.tensor_train import TensorTrainProblem

CHOICES = 6, 10, 6
"""How many values each of the three ranks has to choose from. More take longer to measure and gain little."""


@final
@dataclass(frozen=True)
class TensorTrain(Factorization):
    """A k × k convolution becomes 1 × 1 to `a` channels, k × 1 to `b`, 1 × k to `c`, and 1 × 1 to the outputs.

    Stride, padding and dilation are divided between the two layers in the middle; the bias goes to the last. Of a 3d
    convolution, the second layer has the first dimension of the kernel, the third the others. A size is the triple
    (a, b, c). For each output position the chain takes Ci a + a b k + b c k + c Co multiplications (with stride 1)
    instead of Ci Co k².

    Args:
        rounds: how often the first two layers and the last two are fitted to each other. More rounds take longer and
            lower the error less each.

    Raises:
        RecipeError: `rounds` is not a whole number of 0 or more.

    References:
        Garipov et al., Ultimate Tensorization: Compressing Convolutional and FC Layers Alike, 2016, arXiv:1611.03214.
        Kuzmin et al., Taxonomy and Evaluation of Structured Compression of CNNs, arXiv:1912.09802, 2019.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"rounds must be 0 or more": self.rounds >= 0})

    def reason(self, layer: LinearMap) -> str:
        return without_two_dimensions(layer)

    def sizes(self, layer: LinearMap, multiple: int) -> Sequence[Size]:
        outputs, inputs = layer.weight_shape[:2]
        taps1, taps2 = _taps(layer)
        largest = (
            min(inputs, outputs * taps1 * taps2),
            min(inputs * taps1, outputs * taps2),
            min(outputs, inputs * taps1 * taps2),
        )
        known = [some_ranks(ranks(most, multiple), few) for most, few in zip(largest, CHOICES, strict=True)]
        return [
            (a, b, c)
            for a, b, c in itertools.product(*known)
            if b <= min(a * taps1, c * taps2) and a <= b * taps1 and c <= b * taps2
        ]

    def parts(self, layer: LinearMap, size: Size) -> tuple[LinearMap, ...]:
        return layer.in_chain(size, (range(0), range(1), range(1, layer.dims), range(0)))

    def errors(self, problem: FactorizationProblem, sizes: Sequence[Size]) -> Sequence[float]:
        return never_rising(sizes, _problem(problem).errors([(a, b, c) for a, b, c in sizes]))

    def factorize(self, problem: FactorizationProblem, size: Size) -> Factorized:
        a, b, c = size
        cores = _problem(problem).solve((a, b, c), self.rounds)
        weights = balanced((cores.inputs, cores.first, cores.second, cores.outputs))
        shapes = (part.weight_shape for part in self.parts(problem.layer, size))
        shaped = tuple(weight.reshape(shape) for weight, shape in zip(weights, shapes, strict=True))
        return Factorized(shaped, cores.matrix)


def _problem(problem: FactorizationProblem) -> TensorTrainProblem:
    layer = problem.layer
    return TensorTrainProblem(problem.regression, problem.metric, layer.weight_shape[1], _taps(layer))


def _taps(layer: LinearMap) -> tuple[int, int]:
    """The taps of the kernel that the two layers in the middle have."""
    return layer.kernel[0], math.prod(layer.kernel[1:])
