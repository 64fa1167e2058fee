"""Coordinates in which a layer's inputs are nearly white, and in which all errors of its outputs count alike.

The error of a map is tr S (M − M₀) H (M − M₀)ᵀ (`numerics/two_factors.py`). With S = Lᵀ L and the mean H̄ = C Cᵀ of H
over the taps of the kernel, change the channels of inputs and outputs to

    x' = C⁻¹ x,    y' = L y,    so    M' = L M C    and    H' = C⁻¹ H C⁻ᵀ

where C acts on the channels at each tap. The error is then tr (M' − M₀') H' (M' − M₀')ᵀ. Were the taps independent of
each other, H' would be 1, and the error ‖M' − M₀'‖²: decompositions of tensors, which are made for this norm, are good
starts in these coordinates. For white inputs they are the solution. A chain whose first layer is 1 × 1 and whose last
layer gives the outputs goes back to the original coordinates in these two layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.regression import Regression, cholesky

FLOOR = 1e-12
"""Share of the largest eigenvalue of S below which an eigenvalue is raised to it, so that L has an inverse."""


@final
@dataclass(frozen=True, eq=False)
class Whitened:
    """A layer's regression in the new coordinates.

    Attributes:
        second: H'.
        best: M₀', with dimensions (outputs, inputs, taps).
        inputs_back: C⁻¹: a 1 × 1 first layer A' in the new coordinates is A' C⁻¹ in the original ones.
        outputs_back: L⁻¹: a last layer B' is L⁻¹ B'.
    """

    second: Float[Tensor, "cols cols"]
    best: Float[Tensor, "outputs inputs taps"]
    inputs_back: Float[Tensor, "inputs inputs"]
    outputs_back: Float[Tensor, "outputs outputs"]

    @classmethod
    def of(cls, regression: Regression, metric: Float[Tensor, "rows rows"], inputs: int) -> Whitened:
        """From the moments of a layer whose columns are ordered (inputs, taps)."""
        values, vectors = torch.linalg.eigh(metric)
        roots = values.clamp(min=max(FLOOR * float(values.max()), torch.finfo(values.dtype).tiny)).sqrt()
        size = len(regression.second)
        taps = size // inputs
        split = regression.second.reshape(inputs, taps, inputs, taps)
        factor = cholesky(split.diagonal(dim1=1, dim2=3).mean(-1))
        back = torch.linalg.solve_triangular(
            factor, torch.eye(inputs, dtype=factor.dtype, device=factor.device), upper=False
        )
        second = torch.einsum("ac,ctdu,bd->atbu", back, split, back).reshape(size, size)
        best = (roots[:, None] * (vectors.mT @ regression.best())).reshape(len(metric), inputs, taps)
        return cls(second, torch.einsum("oct,cd->odt", best, factor), back, vectors / roots)

    def error(self, matrix: Float[Tensor, "outputs inputs taps"]) -> float:
        """The error of a map M'."""
        difference = (matrix - self.best).flatten(1)
        return float(((difference @ self.second) * difference).sum().clamp(min=0))

    def back(self, matrix: Float[Tensor, "outputs inputs taps"]) -> Float[Tensor, "outputs cols"]:
        """M from M'."""
        return torch.einsum("po,oct,cd->pdt", self.outputs_back, matrix, self.inputs_back).flatten(1)
