"""LSQ+: as LSQ, and each activation has a learned offset too.

    x̂ = s ⌊clip((x − β)/s, qmin, qmax)⌉ + β                                                                    (1)

A function such as SiLU gives a few small negative values. Unsigned codes with zero point 0 lose them, and signed codes
spend half of the codes on them. With an offset β < 0 nothing is lost. Integer arithmetic needs a code for 0.0, because
convolutions pad with zeros. So β is rounded to a multiple of the scale in every forward pass, β = −z s with a whole
number z, and the gradient passes through this rounding. What is trained is then what will run.

References:
    Bhalgat et al., "LSQ+", CVPR Workshops 2020, arXiv:2004.09576 (Eqs. 3 to 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from roundwise.graph.matrix import LinearMap
from roundwise.methods.interfaces import LearnedQuantization
from roundwise.methods.training.quantizers import LearnedActivation, LearnedWeight
from roundwise.numerics.grid import Grid
from roundwise.numerics.quantizer import Quantizer


@final
@dataclass(frozen=True)
class LSQPlus(LearnedQuantization):
    """Learned scales, and learned offsets of activations.

    Symmetric activations (`Activations(symmetric=True)`) have no offset, so for these it is the same as `LSQ`.

    Args:
        scales_gradients: divide the gradients of scales and offsets by √(N · qmax), as the paper does.
    """

    scales_gradients: bool = True

    def weight(self, grid: Grid, layer: LinearMap) -> LearnedWeight:
        """A module that quantizes the weight of a layer; weights have no offset."""
        return LearnedWeight(grid, layer, scales_gradients=self.scales_gradients)

    def activation(self, quantizer: Quantizer, device: torch.device) -> LearnedActivation:
        """A module that quantizes an activation."""
        return LearnedActivation(
            quantizer,
            learns_offset=not quantizer.codebook.symmetric,
            scales_gradients=self.scales_gradients,
            device=device,
        )
