"""Canonical polyadic decomposition (CP) from second moments: a layer is a sum of products of one vector per dimension.

    M[o, c, t₁, …, t_d]  =  Σ_ρ  U[o, ρ]  V[ρ, c]  K₁[ρ, t₁] … K_d[ρ, t_d]                                          (1)

As layers: 1 × 1 to r channels, a depthwise convolution along each dimension of the kernel, and 1 × 1 to the outputs. In
the coordinates of `numerics/whitening.py`:

1. *Start.* Alternating least squares (ALS) on M₀ alone: each factor in turn is the solution of a linear regression, the
   others fixed. A penalty for the squares of all factors keeps components from growing without bound while they cancel
   each other, which the decomposition is known for.
2. *Moments.* Given the other factors, U is linear regression on r features; V and each K are improved by conjugate
   gradients (`numerics/conjugate_gradients.py`). The error never rises in this step, which white inputs do not need.

There is no order of components, so each rank is a decomposition of its own.

References:
    Kolda and Bader, Tensor Decompositions and Applications, SIAM Review 51(3), 2009: ALS.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.conjugate_gradients import improved
from roundwise.numerics.regression import Regression, solve
from roundwise.numerics.whitening import Whitened

SWEEPS = 40
"""Each factor is solved for 40 times in step 1. More take longer and gain less each."""

PENALTY = 1e-6
"""Weight of the squares of the factors beside the squared error, for a tensor with norm 1. With a larger number
components are smaller, and the error is larger."""


@final
@dataclass(frozen=True, eq=False)
class Components:
    """The factors of (1), those of the kernel in the order of its dimensions."""

    inputs: Float[Tensor, "rank channels"]
    kernels: tuple[Float[Tensor, "rank taps"], ...]
    outputs: Float[Tensor, "outputs rank"]

    @property
    def taps(self) -> Float[Tensor, "rank all_taps"]:
        """The product of the factors of the kernel."""
        product = self.inputs.new_ones(len(self.inputs), 1)
        for factor in self.kernels:
            product = (product[:, :, None] * factor[:, None, :]).flatten(1)
        return product

    @property
    def features(self) -> Float[Tensor, "rank cols"]:
        """The map from inputs to the channels before the last layer."""
        return (self.inputs[:, :, None] * self.taps[:, None, :]).flatten(1)

    @property
    def matrix(self) -> Float[Tensor, "outputs cols"]:
        """The layer's matrix that they make up."""
        return self.outputs @ self.features

    def with_kernel(self, number: int, factor: Float[Tensor, "rank taps"]) -> Components:
        """With another factor of the kernel."""
        return replace(self, kernels=(*self.kernels[:number], factor, *self.kernels[number + 1 :]))

    def balanced(self) -> Components:
        """The same, with each component's norm shared equally by its factors."""
        factors = [self.outputs.mT, self.inputs, *self.kernels]
        norms = [factor.norm(dim=1).clamp(min=torch.finfo(factor.dtype).tiny) for factor in factors]
        share = torch.stack(norms).log().mean(0).exp()
        outputs, inputs, *kernels = (f * (share / n)[:, None] for f, n in zip(factors, norms, strict=True))
        return Components(inputs, tuple(kernels), outputs.mT)


@final
class CPProblem:
    """The problem of one layer: find the components for a given rank."""

    def __init__(
        self, regression: Regression, metric: Float[Tensor, "rows rows"], inputs: int, kernel: tuple[int, ...]
    ) -> None:
        """Begin with the moments of a layer whose columns are ordered (inputs, kernel)."""
        self._white, self._kernel = Whitened.of(regression, metric, inputs), kernel
        self._is_white = regression.count == 0
        self._cross = self._white.best.flatten(1) @ self._white.second

    def error(self, components: Components) -> float:
        """The error of components in the coordinates of step 1."""
        return self._white.error(components.matrix.reshape(self._white.best.shape))

    def solve(self, rank: int, rounds: int) -> Components:
        """The components in those coordinates, after `rounds` rounds of step 2."""
        components = self._alternated(rank)
        for _ in range(0 if self._is_white else rounds):
            components = self._fitted(components).balanced()
            components = self._improved_inputs(components)
            for number in range(len(self._kernel)):
                components = self._improved_kernel(components, number)
        return components if self._is_white else self._fitted(components).balanced()

    def back(self, components: Components) -> Components:
        """Components in the original coordinates."""
        inputs, outputs = components.inputs @ self._white.inputs_back, self._white.outputs_back @ components.outputs
        return Components(inputs, components.kernels, outputs).balanced()

    def _alternated(self, rank: int) -> Components:
        """Step 1, from random factors that are the same in each run."""
        outputs, inputs, _ = self._white.best.shape
        size = self._white.best.norm().clamp(min=torch.finfo(self._white.best.dtype).tiny)
        tensor = (self._white.best / size).reshape(outputs, inputs, *self._kernel)
        generator = torch.Generator().manual_seed(0)
        factors = [torch.randn(rank, n, dtype=tensor.dtype, generator=generator).to(tensor) for n in tensor.shape]
        unfolded = [tensor.movedim(mode, 0).flatten(1) for mode in range(tensor.dim())]
        eye = PENALTY * torch.eye(rank, dtype=tensor.dtype, device=tensor.device)
        for _ in range(SWEEPS):
            for mode, target in enumerate(unfolded):
                others = [factor for number, factor in enumerate(factors) if number != mode]
                products, gram = others[0], others[0] @ others[0].mT
                for factor in others[1:]:
                    products = (products[:, :, None] * factor[:, None, :]).flatten(1)
                    gram = gram * (factor @ factor.mT)
                factors[mode] = solve(gram + eye, products @ target.mT)
        return Components(factors[1], tuple(factors[2:]), factors[0].mT * size).balanced()

    def _fitted(self, components: Components) -> Components:
        """With the best factor of the outputs."""
        features = components.features
        outputs = solve(features @ self._white.second @ features.mT, features @ self._cross.mT).mT
        return replace(components, outputs=outputs)

    def _improved_inputs(self, components: Components) -> Components:
        taps = components.taps

        def build(core: Float[Tensor, "rank channels"]) -> Float[Tensor, "o cols"]:
            return replace(components, inputs=core).matrix

        def back(matrix: Float[Tensor, "o cols"]) -> Float[Tensor, "rank channels"]:
            return torch.einsum("rct,rt->rc", self._features_back(components, matrix), taps)

        core = improved(components.inputs, build, back, self._white.best.flatten(1), self._white.second)
        return replace(components, inputs=core)

    def _improved_kernel(self, components: Components, number: int) -> Components:
        before = replace(components, kernels=components.kernels[:number]).taps
        after = replace(components, kernels=components.kernels[number + 1 :]).taps

        def build(core: Float[Tensor, "rank taps"]) -> Float[Tensor, "o cols"]:
            return components.with_kernel(number, core).matrix

        def back(matrix: Float[Tensor, "o cols"]) -> Float[Tensor, "rank taps"]:
            taps = torch.einsum("rct,rc->rt", self._features_back(components, matrix), components.inputs)
            split = taps.reshape(len(taps), before.shape[1], self._kernel[number], after.shape[1])
            return torch.einsum("rbta,rb,ra->rt", split, before, after)

        core = improved(components.kernels[number], build, back, self._white.best.flatten(1), self._white.second)
        return components.with_kernel(number, core)

    def _features_back(self, components: Components, matrix: Float[Tensor, "o cols"]) -> Float[Tensor, "rank c t"]:
        """The adjoint of the map from features to the matrix."""
        return (components.outputs.mT @ matrix).reshape(len(components.inputs), *self._white.best.shape[1:])
