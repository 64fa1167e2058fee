"""Means of a layer's outputs, over all samples and all positions, for any weights: without running the layer again.

The layer is affine, so the sum of its outputs over the samples is its output on the sum of its inputs:

    Σ_n (W u(x̂_n) + b) = W u(Σ_n x̂_n) + N b

Borders included: what a convolution pads is zero in every sample, and zero in the sum. So one sample's worth of sums is
all that is kept, and one sample's worth of work gives the mean output at any weights. Sums are in float64, since what
is asked for is a small difference of large means.
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
    """Sums of inputs, place by place, and of targets, channel by channel.

    Attributes:
        layer: the linear map between the two.
    """

    def __init__(self, layer: LinearMap) -> None:
        self.layer = dataclasses.replace(layer, bias=None)
        self._inputs: dict[torch.Size, Tensor] = {}  # by shape: what is a place may depend on the batch
        self._targets = torch.zeros(layer.matrix_shape[:2], dtype=torch.float64, device=layer.device)
        self._count = 0

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls(layer)

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        x, y = self.layer.as_rows(inputs), self.layer.as_rows(targets)
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
        """E y, float64."""
        return self._targets / self._count

    def output(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """E ŵ x̂ for the given weights, without the bias; float64."""
        outputs = torch.zeros_like(self._targets)
        for total in self._inputs.values():
            outputs += self.layer.fold_outputs(self.layer.apply_matrix(weight.double(), total.unsqueeze(0))).sum(-1)
        return outputs / self._count
