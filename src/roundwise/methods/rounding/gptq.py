"""GPTQ: round one column after the other, and change the columns that are still free to make up for each error.

Let H have a ridge added to its diagonal, and let U be the upper Cholesky factor of its inverse, H⁻¹ = Uᵀ U. Then

    1. w ← W + C H⁻¹, the real-valued weights with the smallest error.
    2. For each column j, those with large E[x̂_j²] first:
    3.     q_j ← the nearest code of w_j
    4.     w_k ← w_k − (w_j − ŵ_j) U_jk / U_jj        for every column k after j
    5. The bias takes up the mean error, where it is free.
    6. Keep nearest rounding instead where its error on the held-out samples is smaller.

This is Babai's nearest-plane algorithm: each column is rounded to where the objective is smallest, given the columns
before it and while the columns after it are free real numbers.

GPTQ as published compares with W x̂. Here, as for every method of this library, the target is the float network's output
(Eq. 25 of AdaRound without f_a); that is why line 1 does not start at W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.reconstruction.objectives import Objectives, as_rounding
from roundwise.methods.reconstruction.referee import judge
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.threads import one_thread
from roundwise.statistics import Gram

SLICE = 64
"""Columns in a slice. With larger slices there are fewer large products, and more small updates within a slice."""


@final
@dataclass(frozen=True)
class GPTQ(RoundingSolver[Gram]):
    """Round the columns one after the other; those that follow make up for each error.

    Args:
        ridge: added to the diagonal of H, as a share of its mean; the authors take 0.01.
        by_importance: start with the columns whose inputs are largest; False takes the order of the matrix.
        free_bias: let the layer's bias take up the mean error, where it has one of its own.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323, Section 3.
    """

    ridge: float = 0.01
    by_importance: bool = True
    free_bias: bool = False
    needs: ClassVar[type] = Gram
    traits: ClassVar[Traits] = Traits(floor_or_ceil=False)

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"ridge must be positive, for H has no inverse where inputs are dependent": self.ridge > 0})

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        objectives = Objectives.of(problem, free_bias=self.free_bias)
        codes = self.search(objectives.plain, problem.grid)
        if codes is None:
            raise RecipeError(
                f"GPTQ: the second moments of layer '{problem.name}', from {objectives.plain.count} positions of its "
                f"inputs, have no inverse even with ridge={self.ridge}, because inputs depend on each other. Give a "
                "larger ridge (0.1, say) or more samples, or round this layer by another method."
            )
        return as_rounding(problem, *judge(objectives, objectives.no_worse_than_nearest(codes)))

    def search(self, quadratic: Quadratic, grid: Grid) -> Int[Tensor, "groups rows cols"] | None:
        """Lines 1 to 4: codes, or None where H has no inverse."""
        hessian, shape = quadratic.hessian, quadratic.weight.shape
        groups, _, cols = shape
        importance = hessian.diagonal(dim1=1, dim2=2)
        order = importance.argsort(dim=-1, descending=True, stable=True)
        if not self.by_importance:
            order = torch.arange(cols, device=order.device).expand(groups, cols)

        def in_order(matrix: Tensor) -> Tensor:
            return matrix.expand(shape).gather(2, order.unsqueeze(1).expand(shape))

        weight = in_order(quadratic.minimum(self.ridge)).clone()
        scale, zero_point = in_order(grid.scales(cols)), in_order(expand_blocks(grid.zero_point, cols))
        sorted_hessian = hessian.gather(1, order.unsqueeze(2).expand_as(hessian))
        sorted_hessian = sorted_hessian.gather(2, order.unsqueeze(1).expand_as(hessian))
        factor = self._factor(sorted_hessian)
        if factor is None:
            return None
        codes = torch.empty_like(weight)
        for start in range(0, cols, SLICE):
            stop = min(start + SLICE, cols)
            errors = torch.empty_like(weight[..., start:stop])
            for j in range(start, stop):
                column = weight[..., j]
                codes[..., j] = grid.clip((column / scale[..., j] + zero_point[..., j]).round())
                rounded = (codes[..., j] - zero_point[..., j]) * scale[..., j]
                errors[..., j - start] = (column - rounded) / factor[:, j, j, None]
                weight[..., j:stop] -= errors[..., j - start, None] * factor[:, None, j, j:stop]
            weight[..., stop:] -= errors @ factor[:, start:stop, stop:]
        return torch.empty_like(codes).scatter_(2, order.unsqueeze(1).expand(shape), codes).to(torch.int32)

    def _factor(self, hessian: Float[Tensor, "groups cols cols"]) -> Float[Tensor, "groups cols cols"] | None:
        """U with H⁻¹ = Uᵀ U, for H with the ridge, computed in float64; None where H has no inverse."""
        double = hessian.double()
        mean = double.diagonal(dim1=1, dim2=2).mean(-1)
        added = torch.where(mean > 0, self.ridge * mean, 1.0)[:, None, None]
        eye = torch.eye(hessian.shape[-1], dtype=torch.float64, device=hessian.device)
        with one_thread():
            lower, failed = torch.linalg.cholesky_ex(double + added * eye)
            if failed.any():
                return None
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        return None if failed.any() else factor.float()
