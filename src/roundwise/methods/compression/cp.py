"""CP: a convolution becomes 1 × 1, a depthwise convolution along each dimension of the kernel, and 1 × 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.graph.matrix import LinearMap
from roundwise.methods.compressing import Factorization, FactorizationProblem, Factorized, Size, without_taps
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.cp import CPProblem
from roundwise.numerics.ranks import never_rising, ranks, some_ranks

CHOICES = 8
"""The rank has at most 8 values to choose from: each takes a decomposition of its own."""


@final
@dataclass(frozen=True)
class CP(Factorization):
    """A k × k convolution becomes 1 × 1 to `rank` channels, depthwise k × 1 and 1 × k, and 1 × 1 to the outputs.

    Stride, padding and dilation are divided between the depthwise layers; the bias goes to the last. For each output
    position the chain takes r (Ci + k + k + Co) multiplications (with stride 1) instead of Ci Co k². Of all methods
    this one has the most channels for the same cost. It is solved by descent from one start, which need not find the
    best components, and takes longer than the others. Runtimes take long for the few multiplications of depthwise
    layers.

    Args:
        rounds: how often all factors are fitted to the second moments. More rounds take longer and lower the error less
            each.

    Raises:
        RecipeError: `rounds` is not a whole number of 0 or more.

    References:
        Lebedev et al., Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition, ICLR 2015,
        arXiv:1412.6553.
    """

    rounds: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"rounds must be 0 or more": self.rounds >= 0})

    def reason(self, layer: LinearMap) -> str:
        return without_taps(layer)

    def sizes(self, layer: LinearMap, multiple: int) -> Sequence[Size]:
        outputs, inputs = layer.weight_shape[:2]
        kernel = [layer.kernel[d] for d in _dims(layer)]
        # Larger ranks have more parameters than the layer.
        largest = max(1, math.prod(layer.weight_shape) // (outputs + inputs + sum(kernel)))
        return [(rank,) for rank in some_ranks(ranks(largest, multiple), CHOICES)]

    def parts(self, layer: LinearMap, size: Size) -> tuple[LinearMap, ...]:
        dims = _dims(layer)
        owners = (range(0), *(range(d, d + 1) for d in dims), range(0))
        return layer.in_chain(size * (len(dims) + 1), owners, depthwise=True)

    def errors(self, problem: FactorizationProblem, sizes: Sequence[Size]) -> Sequence[float]:
        task = _problem(problem)
        return never_rising(sizes, [task.error(task.solve(rank, self.rounds)) for (rank,) in sizes])

    def factorize(self, problem: FactorizationProblem, size: Size) -> Factorized:
        task = _problem(problem)
        components = task.back(task.solve(size[0], self.rounds))
        weights = components.inputs, *components.kernels, components.outputs
        shapes = (part.weight_shape for part in self.parts(problem.layer, size))
        shaped = tuple(weight.reshape(shape) for weight, shape in zip(weights, shapes, strict=True))
        return Factorized(shaped, components.matrix)


def _problem(problem: FactorizationProblem) -> CPProblem:
    layer = problem.layer
    kernel = tuple(layer.kernel[d] for d in _dims(layer))
    return CPProblem(problem.regression, problem.metric, layer.weight_shape[1], kernel)


def _dims(layer: LinearMap) -> list[int]:
    """The dimensions of the kernel that have several taps, or a stride or padding: each has a depthwise layer."""
    padding = layer.padding
    pads = [0] * layer.dims if isinstance(padding, str) else padding
    return [d for d in range(layer.dims) if layer.kernel[d] > 1 or layer.stride[d] > 1 or pads[d] > 0]
