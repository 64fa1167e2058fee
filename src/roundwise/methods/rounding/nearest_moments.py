"""Round to nearest, then scale so that weights keep their standard deviation: bias correction of weights, in part.

Rounding and clipping change the mean and the norm of each output channel's weights, and where a channel is clipped
much, always in the same direction. The source restores both, for every channel c:

    ŵ ← ξ_c (ŵ + μ_c),     μ_c = E[W_c] − E[Ŵ_c],     ξ_c = ‖W_c − E[W_c]‖ / ‖Ŵ_c − E[Ŵ_c]‖

*The norm* can be restored by the scale: codes stay, and the grid's scale becomes ξ_c s. This is exact where each output
channel has a scale of its own. Where more weights share a scale, or fewer, the norm is that of the weights that do.

*The mean* cannot. Codes and the zero point are integers, and μ_c is a fraction of a step; the source simulates weights
between the codes. To an output, μ_c adds ξ_c μ_c Σ_j x_j, a multiple of the sum of all inputs, which hardware would
have to compute for every sample. The mean of this, ξ_c μ_c Σ_j E[x_j], is a constant that the bias can hold. It is left
to `EmpiricalBias`, which corrects the mean of every output, this part included; that needs samples, and this method
needs none. What is missing against the source's simulation is ξ_c μ_c Σ_j (x_j − E[x_j]), which varies with the sample.

    rw.Quantize(rw.Weights(ranges=rw.ranges.ACIQ()), rw.rounding.NearestMoments(),
    correction=rw.corrections.EmpiricalBias())

The squared error of the weights becomes larger: the scale with the smallest squared error makes weights smaller.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.statistics import Nothing


@final
@dataclass(frozen=True)
class NearestMoments(RoundingSolver[Nothing]):
    """Round to nearest, then scale so that the weights that share a scale keep their standard deviation.

    References:
        Banner et al., NeurIPS 2019, arXiv:1810.05723, Section 4 (there called bias correction, for it corrects a bias).
    """

    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        weight, grid = problem.weight, problem.grid
        codes = grid.quantize(weight)
        shape = grid.granularity_shape
        ratio = _deviation(weight, shape) / _deviation(grid.dequantize(codes), shape)
        usable = ratio.isfinite() & (ratio > 0)  # False where all weights, or all codes, are the same
        scale = torch.where(usable, grid.scale.double() * ratio, grid.scale.double()).float()
        return Rounding(codes, dataclasses.replace(grid, scale=scale))


def _deviation(
    matrix: Float[Tensor, "groups rows cols"], shape: tuple[int, int, int]
) -> Float[Tensor, "scale_groups scale_rows blocks"]:
    """Standard deviation of the weights that share a scale, in the scales' shape; float64."""
    groups, rows, blocks = shape
    return matrix.double().reshape(groups, rows, blocks, -1).std(-1, correction=0)
