"""LSQ: the scales of weights and activations are parameters, trained with the network.

    x̂ = s (clip(⌊x/s⌉ + z, qmin, qmax) − z)

With unsigned codes from 0.0 up this is configuration 1 in the terms of LSQ+, with signed codes configuration 2.

The gradient of s is that of the straight-through estimator, divided by √(N · qmax) for N values that share it
(`numerics/straight_through.py`). The zero point z stays as it was chosen before training.

References:
    Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from roundwise.graph.matrix import LinearMap
from roundwise.methods.interfaces import LearnedQuantization
from roundwise.methods.settings import check_types
from roundwise.methods.training.quantizers import LearnedActivation, LearnedWeight
from roundwise.numerics.grid import Grid
from roundwise.numerics.quantizer import Quantizer


@final
@dataclass(frozen=True)
class LSQ(LearnedQuantization):
    """Learned scales, fixed zero points.

    Args:
        scales_gradients: divide the gradients of scales by √(N · qmax), as the paper does. With Adam, whose steps do
            not depend on the size of gradients, it makes little difference.
    """

    scales_gradients: bool = True

    def __post_init__(self) -> None:
        check_types(self)

    def weight(self, grid: Grid, layer: LinearMap) -> LearnedWeight:
        """A module that quantizes the weight of a layer."""
        return LearnedWeight(grid, layer, scales_gradients=self.scales_gradients)

    def activation(self, quantizer: Quantizer, device: torch.device) -> LearnedActivation:
        """A module that quantizes an activation."""
        return LearnedActivation(quantizer, learned=None, scales_gradients=self.scales_gradients, device=device)
