"""Round to nearest, then choose new scales with the smallest error of the layer's outputs: the "+opt" of OMSE+opt.

    ŝ = argmin over s of E ‖y − (s v x̂ + b)‖²,     v = q − z, the nearest codes

The codes do not change. A scale for each output channel, or one for all, has a closed form in second moments of the
inputs (`numerics/quadratic.py`). It uses all samples and holds none out, since one number per row cannot overfit them.

*OMSE* has three parts. The first, a scale for each output channel with the smallest squared error of the weights, is
`WeightMSE` with `Nearest`; the source finds it by a line search. The second part, "+opt", is this method. So OMSE+opt
with one tensor for each layer is

    rw.Quantize(rw.Weights(ranges=rw.ranges.WeightMSE()), rw.rounding.NearestScaled())

The third part replaces a layer with a large error by the sum of two quantized tensors. That needs twice the bits and
two grids; here, give such a layer more bits in the recipe's overrides.

Two things differ from the source. The inputs come from the network so far, so that the scale also compensates for the
error of earlier layers; and of a large image, positions are drawn at random (`statistics/gram.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.reconstruction.objectives import Objectives
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class NearestScaled(RoundingSolver[Gram]):
    """Round to nearest, then give each scale the value with the smallest error of the layer's outputs for these codes.

    References:
        Choukroun et al., Low-bit Quantization of Neural Networks for Efficient Inference, 2019, arXiv:1902.06822.
    """

    needs: ClassVar[type] = Gram
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        grid, codes = problem.grid, problem.grid.quantize(problem.weight)
        plain = Objectives.of(problem, "all", free_bias=False).plain
        note = "scales were not changed: scales of groups depend on each other" if grid.scale.shape[-1] > 1 else ""
        return Rounding(codes, plain.best_scale(grid, codes), note=note)
