"""Output MSE: the grid for which nearest rounding changes the layer's output least.

    min over s (and z)   E ‖W x̂ − W̄(s, z) x̂‖²  =  Σ over rows  d H dᵀ,     d = w − w̄,  H = E[x̂ x̂ᵀ]

The candidates are the min-max interval multiplied by fractions up to 1, as in the coarse search of `WeightMSE`. Unlike
there, the error is that of the layer's output, not of its weights. The paper's appendix compares it with min-max and
weight MSE: it is better than both for nearest rounding, and not better than weight MSE for AdaRound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import RangeEstimator
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Codebook, Granularity, Grid, affine_grid, blocked
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class OutputMSE(RangeEstimator[Gram]):
    """Minimise the squared error of the layer's output under nearest rounding over the scale (and the zero point).

    If a row has several scales (`PerGroup`), each is chosen as if the weights of the other groups stayed in float.

    Args:
        candidates: number of evenly spaced fractions up to 1; more find a better scale and take longer.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568v2, appendix (influence of the quantization grid).
    """

    candidates: int = 100
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"candidates must be at least 1": self.candidates >= 1})

    def estimate(
        self,
        weight: Float[Tensor, "groups rows cols"],
        codebook: Codebook,
        granularity: Granularity,
        statistics: Gram,
        layer: str,
    ) -> Grid:
        weight = weight.float()
        hessian = statistics.fit.second / statistics.fit.count
        view = blocked(weight, granularity, layer)
        low, high = view.amin(-1), view.amax(-1)
        best, least = affine_grid(low, high, codebook), torch.full_like(low, torch.inf)
        for number in range(self.candidates, 0, -1):
            grid = affine_grid(low * number / self.candidates, high * number / self.candidates, codebook)
            errors = self._errors(weight, grid, hessian, low.shape)
            better = errors < least
            least = torch.where(better, errors, least)
            best = Grid(
                torch.where(better, grid.scale, best.scale),
                torch.where(better, grid.zero_point, best.zero_point),
                codebook,
            )
        return best

    def _errors(self, weight: Tensor, grid: Grid, hessian: Tensor, shape: torch.Size) -> Tensor:
        """The squared error of the output that each scale causes, in the shape of the scales."""
        difference = weight - grid.fake_quantize(weight)
        blocks, cols = shape[2], weight.shape[2]
        size = cols // blocks
        parts = zip(difference.split(size, dim=-1), range(0, cols, size), strict=True)
        errors = torch.stack(
            [((part @ hessian[:, at : at + size, at : at + size]) * part).sum(-1) for part, at in parts], dim=-1
        )
        for dim in (0, 1):
            if shape[dim] == 1:
                errors = errors.sum(dim, keepdim=True)
        return errors
