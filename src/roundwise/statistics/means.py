"""The mean outputs of a layer, over all samples and positions, for any weights: without running all samples again.

The layer is affine, so the sum of its outputs over all samples is its output for the sum of its inputs:

    Σ_n (W u(x̂_n) + b) = W u(Σ_n x̂_n) + N b

where u unfolds the input of a convolution. This also holds at borders, because padding is zero in every sample and in
the sum. So the statistic keeps one tensor with the size of one sample, and one forward pass of it gives the mean output
for any weights. Sums are in float64, because bias correction needs the small difference of two large means.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.graph.matrix import LinearMap
from roundwise.statistics.base import Statistic


@final
class Means(Statistic):
    """The sum of inputs over samples, for each element of the input; and the sum of targets for each channel.

    Attributes:
        layer: the linear map between inputs and targets, without its bias.
    """

    def __init__(self, layer: LinearMap) -> None:
        self.layer = dataclasses.replace(layer, bias=None)
        self._inputs: dict[torch.Size, Tensor] = {}  # one sum for each shape, since batches may differ in size
        self._targets = torch.zeros(layer.matrix_shape[:2], dtype=torch.float64, device=layer.device)
        self._count = 0

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls(layer)

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        x, y = self.layer.as_items(inputs), self.layer.as_items(targets)
        total = x.sum(0, dtype=torch.float64).to(self.layer.device)
        self._inputs[total.shape] = total + self._inputs.get(total.shape, 0)
        across = [dim for dim in range(y.dim()) if dim != 1]
        self._targets += y.sum(across, dtype=torch.float64).to(self.layer.device).reshape(self._targets.shape)
        self._count += y.shape[0] * math.prod(y.shape[2:])

    @classmethod
    def bytes_needed(cls, layer: LinearMap, samples: int, positions: int) -> int:
        groups, _, cols = layer.matrix_shape
        return 2 * 8 * positions * groups * cols // math.prod(layer.kernel)

    @property
    def target(self) -> Float[Tensor, "groups rows"]:
        """E[y], float64."""
        return self._targets / self._count

    def output(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """E[ŵ x̂] for the given weights, without the bias; float64."""
        outputs = torch.zeros_like(self._targets)
        for total in self._inputs.values():
            outputs += self.layer.fold_outputs(self.layer.apply_matrix(weight.double(), total.unsqueeze(0))).sum(-1)
        return outputs / self._count
