"""Round to nearest, then give the weights back the spread that they had: bias correction of weights, as far as it goes.

Rounding and clipping change the mean and the norm of each output channel's weights, always to the same side where a
channel is clipped much. The source takes both back, for every channel c:

    ŵ ← ξ_c (ŵ + μ_c),     μ_c = E[W_c] − E[Ŵ_c],     ξ_c = ‖W_c − E[W_c]‖ / ‖Ŵ_c − E[Ŵ_c]‖

*The norm* is a matter of the scale: codes stay, and the grid's scale becomes ξ_c s. So that much is exact where each
output channel has a scale of its own. Where more weights share a scale, or fewer, the norms are theirs.

*The mean* is not on the grid. Codes are integers and so is the zero point, and μ_c is a fraction of a step; the
source's simulation computes with weights between the codes. What μ_c adds to an output is ξ_c μ_c Σ_j x_j, the same
multiple of the sum of all inputs for every sample; hardware would need that sum. Its mean, ξ_c μ_c Σ_j E[x_j], is a
constant, and a bias can hold it. The bias that takes up all of the mean error holds that, and whatever else shifts
the mean: so the mean is left to `EmpiricalBias`, which needs samples as this method does not. What is lost against
the simulation is ξ_c μ_c Σ_j (x_j − E[x_j]), by how much the sum of the inputs differs from sample to sample.

    rw.Recipe(rw.Weights(ranges=rw.ranges.ACIQ()), rw.rounding.NearestMoments(),
    correction=rw.corrections.EmpiricalBias())

The squared error of the weights grows by it: the best scale for given codes in that sense makes them shorter.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, final

import torch

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
        usable = ratio.isfinite() & (ratio > 0)  # nothing to keep where all weights, or all codes, are alike
        scale = torch.where(usable, grid.scale.double() * ratio, grid.scale.double()).float()
        return Rounding(codes, dataclasses.replace(grid, scale=scale))


def _deviation(matrix: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Standard deviation of the weights that share a scale, in the scales' shape; float64."""
    groups, rows, blocks = shape
    return matrix.double().reshape(groups, rows, blocks, -1).std(-1, correction=0)
