"""Round to nearest, then choose the scales anew, so that outputs are reproduced best: the "+opt" of OMSE+opt.

    ŝ = argmin over s of E ‖y − (s v x̂ + b)‖²,     v = q − z, the nearest codes

Codes stay as they are. A scale for each output channel, or one for all, has a closed form in second moments of the
inputs (`numerics/quadratic.py`); over all samples, since one number for a whole row cannot fit them too closely.

*OMSE* has three parts. The first, a scale for each output channel with the least squared error of the weights rounded
to nearest, is `WeightMSE` with `Nearest`: the same objective, there found by a line search. The second, "+opt", is this
method, so that OMSE+opt for one tensor to a layer is

    rw.Recipe(rw.Weights(ranges=rw.ranges.WeightMSE()), rw.rounding.NearestScaled())

The third stands for a layer whose error stays large by the sum of two quantized tensors. That is twice the bits, and no
single grid; here such a layer is given more bits in the recipe's overrides.

What differs from the source: inputs are those of the quantized layers before, so that an error which is inherited is
made up for as far as a scale can, and positions of a large image are drawn at random (`statistics/gram.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.reconstruction import WORK
from roundwise.numerics.quadratic import Quadratic
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class NearestScaled(RoundingSolver[Gram]):
    """Round to nearest, then give each scale the value that reproduces the layer's outputs best for these codes.

    References:
        Choukroun et al., Low-bit Quantization of Neural Networks for Efficient Inference, 2019, arXiv:1902.06822.
    """

    needs: ClassVar[type] = Gram

    def work(self, rows_per_sample: int, samples: int) -> float:
        return WORK * rows_per_sample * samples

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        statistics, weight, grid = problem.statistics, problem.weight, problem.grid
        bias = statistics.layer.bias
        bias = None if bias is None else bias.float().reshape(weight.shape[:2])
        moments = statistics.fit.merge(statistics.held_out)
        quadratic = Quadratic.of(moments, weight, bias, free_bias=False)
        codes = grid.quantize(weight)
        note = "scales of groups depend on each other and stay as they were" if grid.scale.shape[-1] > 1 else ""
        return Rounding(codes, quadratic.best_scale(grid, codes), note=note)
