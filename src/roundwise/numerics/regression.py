"""Linear regression from second moments: fit a map M and a bias to y ≈ M x + b without looking at the samples again.

With H = E[(x − μ)(x − μ)ᵀ] and G = E[(y − ν)(x − μ)ᵀ], where μ = E x and ν = E y, the mean squared error of M with its
best bias b = ν − M μ is

    E ‖y − M x − b‖²  =  E ‖y − ν‖² − 2 tr(M Gᵀ) + tr(M H Mᵀ)                                                       (1)

so M = G H⁻¹ is the best map. Everything that compression needs follows from (1): the error of any M, and the best
M of a given form, such as a product of two smaller matrices (`numerics/two_factors.py`).

Where there are no samples, inputs are taken as *white*: H = 1, G = W and E ‖y − ν‖² = ‖W‖². Then (1) is ‖W − M‖², so
the same code finds the best approximation of the weights. With few samples, `shrunk` mixes the two.

All tensors are float64: H is often nearly singular.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.moments import Moments

RIDGE = 1e-9
"""Share of the mean diagonal of H that is added to its diagonal before it is inverted. A larger number makes solutions
of nearly singular H smaller and less exact."""


@final
@dataclass(frozen=True, eq=False)
class Regression:
    """The moments of inputs and targets, about their means.

    Attributes:
        second: H.
        cross: G.
        energy: E (y − ν)² of each row.
        input_mean, target_mean: μ and ν.
        count: number of positions that the moments are means over; 0 for white inputs.
    """

    second: Float[Tensor, "cols cols"]
    cross: Float[Tensor, "rows cols"]
    energy: Float[Tensor, "rows"]
    input_mean: Float[Tensor, "cols"]
    target_mean: Float[Tensor, "rows"]
    count: int

    @classmethod
    def of(cls, moments: Moments, group: int = 0) -> Regression:
        """From the sums of one group of a layer, over at least one position."""
        n = moments.count
        inputs, targets = moments.inputs[group].double() / n, moments.targets[group].double() / n
        second = moments.second[group].double() / n - torch.outer(inputs, inputs)
        cross = moments.cross[group].double() / n - torch.outer(targets, inputs)
        energy = moments.energy[group].double() / n - targets.square()
        return cls(second, cross, energy.clamp(min=0), inputs, targets, n)

    @classmethod
    def white(cls, weight: Float[Tensor, "rows cols"], bias: Float[Tensor, "rows"]) -> Regression:
        """Of inputs that are independent, with mean 0 and variance 1, and the outputs of a layer for them."""
        weight = weight.double()
        eye = torch.eye(weight.shape[1], dtype=torch.float64, device=weight.device)
        return cls(eye, weight, weight.square().sum(1), weight.new_zeros(weight.shape[1]), bias.double(), 0)

    def shrunk(self, weight: Float[Tensor, "rows cols"], strength: float) -> Regression:
        """With independent noise of variance `strength` added to each input, and the layer's outputs for that noise.

        It pulls every solution towards one that approximates the weights.
        """
        weight = weight.double()
        return dataclasses.replace(
            self,
            second=self.second + strength * torch.eye(len(self.second), dtype=torch.float64, device=weight.device),
            cross=self.cross + strength * weight,
            energy=self.energy + strength * weight.square().sum(1),
        )

    def shrinkage_strength(self, shrinkage: float) -> float:
        """What `shrunk` takes for a given shrinkage: `shrinkage` · ρ · mean variance of the inputs.

        ρ, from 0 to 1, says how far a covariance from so few samples should be shrunk towards a multiple of the
        identity.

        References:
            Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, IEEE TSP 58(10), 2010, Eq. 23 (OAS).
        """
        p, n = len(self.second), self.count
        if n == 0:
            return 0.0
        trace, squares = float(self.second.trace()), float(self.second.square().sum())
        excess = (n + 1 - 2 / p) * (squares - trace**2 / p)
        share = min(1.0, ((1 - 2 / p) * squares + trace**2) / excess) if excess > 0 else 1.0
        return shrinkage * share * trace / p

    def best(self) -> Float[Tensor, "rows cols"]:
        """The map with the smallest error, G H⁻¹."""
        return solve(self.second, self.cross.mT).mT

    def bias(self, matrix: Float[Tensor, "rows cols"]) -> Float[Tensor, "rows"]:
        """The best bias for a map, ν − M μ."""
        return self.target_mean - matrix @ self.input_mean

    def error(
        self, matrix: Float[Tensor, "rows cols"], bias: Float[Tensor, "rows"] | None = None
    ) -> Float[Tensor, "rows"]:
        """The mean squared error of each row (Eq. 1), with a given bias or with the best one."""
        quadratic = ((matrix @ self.second - 2 * self.cross) * matrix).sum(1)
        shift = 0.0 if bias is None else (self.bias(matrix) - bias).square()
        return self.energy + quadratic + shift

    def loss(
        self,
        matrix: Float[Tensor, "rows cols"],
        bias: Float[Tensor, "rows"],
        metric: Float[Tensor, "rows rows"],
    ) -> float:
        """E (y − M x − b)ᵀ S (y − M x − b) for a metric S, less a constant: differences between two maps are exact."""
        shift = self.bias(matrix) - bias
        quadratic = (metric * ((matrix @ self.second - 2 * self.cross) @ matrix.mT)).sum()
        return float(quadratic + shift @ metric @ shift)


def solve(second: Float[Tensor, "n n"], right: Float[Tensor, "n columns"]) -> Float[Tensor, "n columns"]:
    """Solve H X = R for a symmetric H without negative eigenvalues, which may be singular."""
    solution: Tensor = torch.cholesky_solve(right, cholesky(second))
    return solution


def cholesky(second: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The lower Cholesky factor of H plus a ridge, as small as possible."""
    mean = float(second.diagonal().mean())
    added = max(RIDGE * mean, torch.finfo(second.dtype).tiny)
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    while True:
        factor, failed = torch.linalg.cholesky_ex(second + added * eye)
        if not int(failed) and bool(factor.isfinite().all()):
            lower: Tensor = factor
            return lower
        added *= 100
