"""LSQ+: as LSQ, and each activation has a learned offset too.

    x̂ = s ⌊clip((x − β)/s, qmin, qmax)⌉ + β                                                                    (1)

A function such as SiLU gives a few small negative values. Unsigned codes with zero point 0 lose them, and signed codes
spend half of the codes on them. With an offset β < 0 nothing is lost. The paper has four configurations:

    1    unsigned    scale             LSQ(), with ranges from 0.0 up: all negative values become 0
    2    signed      scale             LSQ(), with Activations(symmetric=True)
    3    signed      scale, offset     LSQPlus(signed=True)
    4    unsigned    scale, offset     LSQPlus()

3 and 4 can represent the same numbers. They differ in the gradient of s beyond the ends of the range, which is qmin or
qmax: with signed codes both ends move when s changes, with unsigned codes only the upper one does.

**The offset is a whole number of steps.** Integer arithmetic needs a code for 0.0, because convolutions pad with zeros.
So β is rounded to a multiple of the scale in every forward pass, and the gradient passes through this rounding. What is
trained is then what will run. With `offset="real"`, β is not rounded, as in the paper. The difference δ from the
nearest multiple is then subtracted before quantization. A layer that reads the activation takes it up in its bias,
which costs nothing: y = W (x̂ + δ) + b = W x̂ + (b + δ W 1). Where that is wrong, as at a border that is padded with
zeros, δ is added back in float arithmetic. This is exact, but no integer kernel can be used there. The report says so.

References:
    Bhalgat et al., "LSQ+", CVPR Workshops 2020, arXiv:2004.09576 (Eqs. 3 to 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from roundwise.graph.matrix import LinearMap
from roundwise.methods.interfaces import LearnedQuantization
from roundwise.methods.settings import check_types
from roundwise.methods.training.quantizers import LearnedActivation, LearnedOffset, LearnedWeight
from roundwise.numerics.grid import Grid
from roundwise.numerics.quantizer import Quantizer


@final
@dataclass(frozen=True)
class LSQPlus(LearnedQuantization):
    """Learned scales, and learned offsets of activations.

    Symmetric activations (`Activations(symmetric=True)`) have no offset, so for these it is the same as `LSQ`.

    Args:
        scales_gradients: divide the gradients of scales and offsets by √(N · qmax), as the paper does.
        signed: count codes from the middle of the range: configuration 3 of the paper; False is configuration 4.
        offset: "integer" rounds offsets to multiples of the scale in training; "real" does not, and where a layer pads
            with zeros the difference is then added in float arithmetic.
    """

    scales_gradients: bool = True
    signed: bool = False
    offset: Literal["integer", "real"] = "integer"

    def __post_init__(self) -> None:
        check_types(self)

    def weight(self, grid: Grid, layer: LinearMap) -> LearnedWeight:
        """A module that quantizes the weight of a layer; weights have no offset."""
        return LearnedWeight(grid, layer, scales_gradients=self.scales_gradients)

    def activation(self, quantizer: Quantizer, device: torch.device) -> LearnedActivation:
        """A module that quantizes an activation."""
        learned = None if quantizer.codebook.symmetric else LearnedOffset(self.signed, self.offset == "real")
        return LearnedActivation(quantizer, learned=learned, scales_gradients=self.scales_gradients, device=device)
