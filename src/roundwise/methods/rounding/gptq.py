"""GPTQ: round column after column, and let the columns that are still free make up for each error.

With H damped, and U the upper Cholesky factor of its inverse (H⁻¹ = Uᵀ U), for the columns in order:

    q_j ← nearest code of w_j,      w_k ← w_k − (w_j − ŵ_j) U_jk / U_jj        for every k after j

which is Babai's nearest-plane algorithm: each column is rounded where the objective is smallest given those before it,
while those after it are taken to be free real numbers. Columns with large E[x̂_j²] come first.

GPTQ as published compares with W x̂. Here, as for every method of this library, the target is the float network's output
(Eq. 25 of AdaRound without f_a): the weights to be rounded are those with the smallest error, W + C H⁻¹.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.reconstruction import WORK, Freedom, Slope, solve
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.descent import Choices
from roundwise.statistics import Gram

BLOCK = 64
"""Columns between two matrix products."""


@final
@dataclass(frozen=True)
class GPTQ(RoundingSolver[Gram]):
    """Round the columns one after the other, each error made up for by those that follow.

    Args:
        damping: added to the diagonal of H, as a share of its mean; the authors take 0.01.
        by_importance: start with the columns that weigh most; else in the order of the matrix.
        free_bias: let the layer's bias take up the mean error, where it has one of its own.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323, Section 3.
    """

    damping: float = 0.01
    by_importance: bool = True
    free_bias: bool = False
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        rule = "damping must be positive, since H has no inverse where inputs are dependent"
        check_rules(self, {rule: self.damping > 0})

    @property
    def floor_or_ceil(self) -> bool:
        return False

    def work(self, rows_per_sample: int, samples: int) -> float:
        return WORK * rows_per_sample * samples

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        def search(quadratic: Quadratic, grid: Grid, _: Choices, __: Slope | None) -> Tensor:
            codes = self.search(quadratic, grid)
            if codes is None:
                raise RecipeError(
                    f"{self}: the second moments of layer '{problem.name}' have no inverse even with so much damping. "
                    "Give more (0.1, say) or more samples, or round this layer by another method."
                )
            return codes

        return solve(problem, search, Freedom(any_code=True, free_bias=self.free_bias))

    def search(self, quadratic: Quadratic, grid: Grid) -> Tensor | None:
        """Codes, or None where H has no inverse."""
        hessian, shape = quadratic.hessian, quadratic.weight.shape
        groups, _, cols = shape
        importance = hessian.diagonal(dim1=1, dim2=2)
        order = importance.argsort(dim=-1, descending=True, stable=True)
        if not self.by_importance:
            order = torch.arange(cols, device=order.device).expand(groups, cols)

        def in_order(matrix: Tensor) -> Tensor:
            return matrix.expand(shape).gather(2, order.unsqueeze(1).expand(shape))

        weight = in_order(quadratic.minimum(self.damping)).clone()
        scale, zero_point = in_order(grid.steps(cols)), in_order(expand_blocks(grid.zero_point, cols))
        sorted_hessian = hessian.gather(1, order.unsqueeze(2).expand_as(hessian))
        sorted_hessian = sorted_hessian.gather(2, order.unsqueeze(1).expand_as(hessian))
        factor = self._factor(sorted_hessian)
        if factor is None:
            return None
        codes = torch.empty_like(weight)
        for start in range(0, cols, BLOCK):
            stop = min(start + BLOCK, cols)
            errors = torch.empty_like(weight[..., start:stop])
            for j in range(start, stop):
                column = weight[..., j]
                codes[..., j] = grid.clip((column / scale[..., j] + zero_point[..., j]).round())
                rounded = (codes[..., j] - zero_point[..., j]) * scale[..., j]
                errors[..., j - start] = (column - rounded) / factor[:, j, j, None]
                weight[..., j:stop] -= errors[..., j - start, None] * factor[:, None, j, j:stop]
            weight[..., stop:] -= errors @ factor[:, start:stop, stop:]
        return torch.empty_like(codes).scatter_(2, order.unsqueeze(1).expand(shape), codes)

    def _factor(self, hessian: Tensor) -> Tensor | None:
        """U with H⁻¹ = Uᵀ U, of the damped H, in float64; None if there is none."""
        double = hessian.double()
        mean = double.diagonal(dim1=1, dim2=2).mean(-1)
        ridge = torch.where(mean > 0, self.damping * mean, 1.0)[:, None, None]
        eye = torch.eye(hessian.shape[-1], dtype=torch.float64, device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(double + ridge * eye)
        if failed.any():
            return None
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        return None if failed.any() else factor.float()
