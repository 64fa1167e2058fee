"""Replace a layer by two smaller ones, from second moments: spatial SVD and weight SVD are the same problem.

A convolution with kernel k₁ × k₂ (say, k₁ vertical and k₂ horizontal taps) has weights M[o, c, i, j]. Two convolutions
with r channels between them, the first with k₁ taps and the second with k₂, have

    M[o, c, i, j]  =  Σ_ρ  B[o, ρ, j]  A[ρ, c, i]                                                                   (1)

With k₂ = 1 this is any matrix [rows, cols] of rank r: weight SVD with the kernel in the first layer. With k₁ = 1 the
kernel is in the second layer. With both it is the spatial SVD of Jaderberg et al. (2014).

The best factors minimize  tr S (M − M₀) H (M − M₀)ᵀ,  where M₀ = G H⁻¹ is the best map without a limit of rank
(`numerics/regression.py`), and S says how much the network's output feels errors of the rows and their combinations.

1. *Start.* With S = Lᵀ L and the mean H̄ of H over the second taps, take the singular value decomposition of
   L M₀ H̄^½, its rows (o, j) and its columns (c, i). Its r leading left vectors U give A = Uᵀ L M₀. For k₂ = 1 this is
   the solution (reduced-rank regression), since H̄ = H.
2. *Second factor.* For a given A the problem is linear regression on the features A x, and S plays no role:
   B = G Fᵀ (F H Fᵀ)⁻¹, where F is the matrix from x to the features.
3. *First factor.* For a given B the problem is quadratic in A. A few steps of conjugate gradients lower it.
4. Repeat 2 and 3. The error never rises.

*All ranks at once.* The features of rank r are the first r · k₂ of those of a higher rank, in the order (ρ, j). So one
Cholesky decomposition of F H Fᵀ gives the error after step 2 for every rank (`errors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.regression import Regression, cholesky, solve

CONJUGATE_STEPS = 8
"""Steps of conjugate gradients for the first factor in each round. With more, a round takes longer and gains more."""


@final
@dataclass(frozen=True, eq=False)
class Factors:
    """The two factors of (1).

    Attributes:
        first: A.
        second: B.
    """

    first: Float[Tensor, "rank inputs taps1"]
    second: Float[Tensor, "outputs rank taps2"]

    @property
    def matrix(self) -> Float[Tensor, "outputs cols"]:
        """The layer's matrix that the factors make up."""
        return torch.einsum("orj,rci->ocij", self.second, self.first).flatten(1)

    def balanced(self) -> Factors:
        """The same product, with each channel in the middle scaled so that both factors have the same norm there.

        Neither factor then has much larger numbers than the other, which training and integer arithmetic prefer.
        """
        one, two = self.first.flatten(1).norm(dim=1), self.second.transpose(0, 1).flatten(1).norm(dim=1)
        scale = torch.where((one > 0) & (two > 0), (two / one).sqrt(), 1.0)
        return Factors(self.first * scale[:, None, None], self.second / scale[None, :, None])


@final
class TwoFactors:
    """The problem of one layer: find the factors of a given rank.

    Attributes:
        largest: the largest rank that makes a difference.
    """

    def __init__(
        self, regression: Regression, metric: Float[Tensor, "rows rows"], inputs: int, taps: tuple[int, int]
    ) -> None:
        """Begin with the moments of a layer whose columns are ordered (inputs, first taps, second taps)."""
        self._regression, self._metric = regression, metric
        self._shape = (inputs, *taps)
        outputs = len(metric)
        self.largest = min(inputs * taps[0], outputs * taps[1])
        self._best = regression.best()
        root = _root(metric)
        # Step 1. Rows are (o, j), columns are (c, i).
        target = self._fold(root @ self._best)
        mean = self._second_moments().diagonal(dim1=1, dim2=3).mean(-1)
        left, _, _ = torch.linalg.svd(target @ cholesky(mean), full_matrices=False)
        self._start = (left.mT @ target).reshape(-1, inputs, taps[0])

    def errors(self) -> Float[Tensor, "ranks"]:
        """The error for each rank from 0 to the largest, weighted by the metric, after one round without step 3."""
        features, cross = self._features(self._start)
        factor = cholesky(features)
        explained = torch.linalg.solve_triangular(factor, cross.mT @ _root(self._metric).mT, upper=False)
        gains = explained.square().sum(1).reshape(len(self._start), -1).sum(1)
        best = self._best
        total = ((self._metric @ best) * (best @ self._regression.second)).sum()
        return (total - torch.cat([gains.new_zeros(1), gains.cumsum(0)])).clamp(min=0)

    def solve(self, rank: int, rounds: int) -> Factors:
        """The factors of a rank, after so many rounds of steps 2 and 3; 0 rounds take step 2 alone."""
        first = self._start[:rank]
        second = self._second_factor(first)
        for _ in range(rounds if self._shape[2] > 1 else 0):
            first = self._first_factor(first, second)
            second = self._second_factor(first)
        return Factors(first, second).balanced()

    def _fold(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows_taps2 inputs_taps1"]:
        """A matrix with the second taps among the rows."""
        folded = matrix.reshape(len(matrix), *self._shape).permute(0, 3, 1, 2)
        return folded.reshape(len(matrix) * self._shape[2], -1)

    def _second_moments(self) -> Float[Tensor, "n taps2 n taps2"]:
        """H with the columns split into (c, i) and j."""
        inputs, taps1, taps2 = self._shape
        return self._regression.second.reshape(inputs * taps1, taps2, inputs * taps1, taps2)

    def _features(
        self, first: Float[Tensor, "rank inputs taps1"]
    ) -> tuple[Float[Tensor, "features features"], Float[Tensor, "rows features"]]:
        """F H Fᵀ and G Fᵀ, features ordered (ρ, j)."""
        maps, taps2 = first.flatten(1), self._shape[2]
        half = torch.tensordot(maps, self._second_moments(), dims=([1], [0]))
        whole = torch.tensordot(half, maps, dims=([2], [1])).permute(0, 1, 3, 2)
        cross = self._regression.cross.reshape(len(self._metric), -1, taps2)
        size = len(maps) * taps2
        return whole.reshape(size, size), torch.einsum("onj,rn->orj", cross, maps).reshape(-1, size)

    def _second_factor(self, first: Float[Tensor, "rank inputs taps1"]) -> Float[Tensor, "outputs rank taps2"]:
        features, cross = self._features(first)
        return solve(features, cross.mT).mT.reshape(len(self._metric), len(first), self._shape[2])

    def _first_factor(
        self, first: Float[Tensor, "rank inputs taps1"], second: Float[Tensor, "outputs rank taps2"]
    ) -> Float[Tensor, "rank inputs taps1"]:
        """Step 3: conjugate gradients on the normal equations of A, which start from the present A."""
        inputs, taps1, taps2 = self._shape
        weighted = torch.einsum("op,prj->orj", self._metric, second)

        def back(matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rank inputs taps1"]:
            return torch.einsum("orj,ocij->rci", weighted, matrix.reshape(-1, inputs, taps1, taps2))

        def curve(change: Float[Tensor, "rank inputs taps1"]) -> Float[Tensor, "rank inputs taps1"]:
            return back(Factors(change, second).matrix @ self._regression.second)

        solution = first
        residual = back(self._regression.cross) - curve(solution)
        # The diagonal of the normal equations, as a preconditioner.
        own = torch.einsum("orj,orj->rj", second, weighted)
        variance = self._regression.second.diagonal().reshape(inputs, taps1, taps2)
        diagonal = torch.einsum("rj,cij->rci", own, variance).clamp(min=torch.finfo(own.dtype).tiny)
        scaled = residual / diagonal
        direction, size = scaled, (residual * scaled).sum()
        for _ in range(CONJUGATE_STEPS):
            curved = curve(direction)
            along = (direction * curved).sum()
            if not float(along) > 0 or not float(size) > 0:
                break
            solution = solution + direction * (size / along)
            residual = residual - curved * (size / along)
            scaled = residual / diagonal
            before, size = size, (residual * scaled).sum()
            direction = scaled + direction * (size / before)
        return solution


def _root(metric: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """L with S = Lᵀ L, for a symmetric S without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(metric)
    root: Tensor = values.clamp(min=0).sqrt().unsqueeze(1) * vectors.mT
    return root
