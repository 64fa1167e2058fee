"""The paper's objective as a quadratic function of the weights.

Take one output channel (a row) with quantized weights ŵ = w + d. Let x̂ be the layer's inputs in the network so far, y
the float network's outputs, and e = y − (w x̂ + b) the error that the layer inherits from the layers before it. Then the
asymmetric objective (Eq. 25 of the AdaRound paper, without f_a and without its regularizer) is

    E (y − ŵ x̂ − b)²  =  d H dᵀ − 2 d cᵀ + E e²,        H = E[x̂ x̂ᵀ],    c = E[e x̂ᵀ]

So it depends on the samples only through H, one matrix for all rows of a group, and C, one vector c for each row. Each
row is a problem of its own. The gradient by d is 2 (d H − c), exact, over all positions used.

*Free bias.* If the layer's bias may change, the best bias for given weights is b + E e − d μ with μ = E x̂. With it, the
objective is the same function of the *centred* moments, H − μ μᵀ and C − (E e) μᵀ: the bias corrects the mean error,
and the weights only need to reproduce how outputs vary.

*Free scale.* For given codes the best scale has a closed form too. With v = q − z, the row's weights are s v, and

    s = ⟨v, w H + c⟩ / ⟨v H, v⟩        each inner product summed over the rows that share the scale.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.moments import Moments
from roundwise.numerics.threads import one_thread


@final
@dataclass(frozen=True, eq=False)
class Quadratic:
    """d H dᵀ − 2 d cᵀ + constant for every row, in float32.

    Attributes:
        weight: w, the float matrix, where d = 0.
        hessian: H, half the second derivative.
        inherited: C, which says how the inherited error depends on the inputs: minus half the gradient at the float
            weights. It is zero where the layer inherits no error.
        constant: E e² of every row; with it a loss is a mean squared error, and not only good for comparisons.
        input_mean, mean_error: μ and E e, which give the best bias; None where the bias is not free.
        count: number of positions that the moments are means over.
    """

    weight: Float[Tensor, "groups rows cols"]
    hessian: Float[Tensor, "groups cols cols"]
    inherited: Float[Tensor, "groups rows cols"]
    constant: Float[Tensor, "groups rows"]
    input_mean: Float[Tensor, "groups cols"] | None = None
    mean_error: Float[Tensor, "groups rows"] | None = None
    count: int = 0

    @classmethod
    def of(
        cls,
        moments: Moments,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"],
        *,
        free_bias: bool,
    ) -> Quadratic:
        """The objective for the given samples.

        Args:
            moments: of the layer's inputs and targets; at least one position.
            weight: the float matrix.
            bias: of the layer; zeros where it has none.
            free_bias: whether the bias takes up the mean error.
        """
        n = moments.count
        mean, target = moments.inputs / n, moments.targets / n
        hessian, cross, energy = moments.second.div_(n), moments.cross / n, moments.energy / n
        # Where the bias is free, subtract the means from everything; otherwise only the bias from the targets.
        away = target if free_bias else bias
        cross = cross - away.unsqueeze(-1) * mean.unsqueeze(-2)
        energy = energy - away * (2 * target - away)
        if free_bias:
            hessian = hessian - mean.unsqueeze(-1) * mean.unsqueeze(-2)
            hessian.diagonal(dim1=1, dim2=2).clamp_(min=0)
        outputs = weight @ hessian
        constant = (energy - 2 * (weight * cross).sum(-1) + (weight * outputs).sum(-1)).clamp(min=0)
        if not free_bias:
            return cls(weight, hessian, cross - outputs, constant, count=n)
        mean_error = target - (weight @ mean.unsqueeze(-1)).squeeze(-1) - bias
        return cls(weight, hessian, cross - outputs, constant, mean, mean_error, n)

    def loss(self, matrix: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """The objective of every row at the given weights: the mean squared error of its output."""
        difference = matrix - self.weight
        return ((difference @ self.hessian - 2 * self.inherited) * difference).sum(-1) + self.constant

    def shift(self, matrix: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """What to add to the bias b to get the best one for the given weights; zero where the bias is not free."""
        if self.input_mean is None or self.mean_error is None:
            return torch.zeros_like(self.constant)
        return self.mean_error - ((matrix - self.weight) @ self.input_mean.unsqueeze(-1)).squeeze(-1)

    def with_targets(self, cross: Float[Tensor, "groups rows cols"], mean: Float[Tensor, "groups rows"]) -> Quadratic:
        """The objective for other targets t, except its constant: `cross` is E (t − y) x̂ᵀ and `mean` is E (t − y)."""
        if self.input_mean is None or self.mean_error is None:
            return dataclasses.replace(self, inherited=self.inherited + cross)
        centred = cross - mean.unsqueeze(-1) * self.input_mean.unsqueeze(-2)
        return dataclasses.replace(self, inherited=self.inherited + centred, mean_error=self.mean_error + mean)

    def shrinkage_strength(self, shrinkage: float) -> Float[Tensor, "groups"]:
        """What shrinkage adds to the diagonal of H, `shrinkage` · ρ · E x̂²: the cost of leaving the float weights.

        With few samples, codes that fit them too closely err on other inputs. Adding to the diagonal of H gives the
        objective that inputs with some independent noise would have: every departure from the float weights costs.
        E x̂² is the mean over the columns, not centred. ρ, from 0 to 1, says how far a covariance from so few samples
        should be shrunk towards a multiple of the identity; with p columns and n positions, and at most 1,

            ρ = ((1 − 2/p) tr H² + tr² H) / ((n + 1 − 2/p) (tr H² − tr² H / p))

        References:
            Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, IEEE TSP 58(10), 2010, Eq. 23 (OAS).
        """
        p, n = self.hessian.shape[-1], self.count
        trace = self.hessian.diagonal(dim1=1, dim2=2).sum(-1)
        squares = self.hessian.square().sum((1, 2))
        excess = (n + 1 - 2 / p) * (squares - trace.square() / p)
        rho = torch.where(excess > 0, ((1 - 2 / p) * squares + trace.square()) / excess, 1.0).clamp(0, 1)
        if self.input_mean is not None:
            trace = trace + self.input_mean.square().sum(-1)
        return shrinkage * rho * trace / p

    def shrunk(self, strength: Float[Tensor, "groups"]) -> Quadratic:
        """The objective plus strength · ‖ŵ − w‖²: with `strength` added to the diagonal of H."""
        hessian = self.hessian.clone()
        hessian.diagonal(dim1=1, dim2=2).add_(strength.unsqueeze(-1))
        return dataclasses.replace(self, hessian=hessian)

    def minimum(self, ridge: float) -> Float[Tensor, "groups rows cols"]:
        """The real-valued weights with the smallest objective.

        Args:
            ridge: added to the diagonal of H, as a share of its mean, so that H has an inverse where inputs depend on
                each other. A larger ridge keeps the weights nearer to the float ones.
        """
        mean = self.hessian.diagonal(dim1=1, dim2=2).mean(-1)
        added = (ridge * mean).clamp(min=torch.finfo(mean.dtype).tiny)[:, None, None]
        eye = torch.eye(self.hessian.shape[-1], dtype=mean.dtype, device=mean.device)
        with one_thread():
            factor, failed = torch.linalg.cholesky_ex(self.hessian + added * eye)
            difference = torch.cholesky_solve(self.inherited.mT, factor).mT  # d with d H = c
        sound = (failed == 0)[:, None, None] & difference.isfinite()
        return self.weight + torch.where(sound, difference, 0)

    def best_scale(self, grid: Grid, codes: Int[Tensor, "groups rows cols"]) -> Grid:
        """The grid with the scales that are best for the codes; a scale that would not be positive stays as it is."""
        if grid.scale.shape[-1] > 1:
            return grid  # several scales of one row depend on each other, and have no closed form
        values = (codes - expand_blocks(grid.zero_point, codes.shape[-1])).float()
        along = (values * (self.weight @ self.hessian + self.inherited)).sum(-1, keepdim=True)
        curve = (values * (values @ self.hessian)).sum(-1, keepdim=True)
        for dim in (0, 1):
            if grid.scale.shape[dim] == 1:
                along, curve = along.sum(dim, keepdim=True), curve.sum(dim, keepdim=True)
        scale = along / curve
        return dataclasses.replace(grid, scale=torch.where(scale.isfinite() & (scale > 0), scale, grid.scale))
