"""The end of a chain of layers, solved exactly: given features of the inputs, the best layer of a limited rank on them.

The first layers of a chain make n features of each tap that they leave over, f = F x'. What follows is a layer with the
remaining taps to r channels and a 1 × 1 layer to the outputs. Together they are a matrix of rank r on the features: the
best one is found by reduced-rank regression, and its error is known for all ranks at once.

Coordinates are those of `numerics/whitening.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.numerics.regression import cholesky
from roundwise.numerics.whitening import Whitened


@final
class ReducedTail:
    """The problem of the last two layers.

    Attributes:
        total: the error of no layer at all.
    """

    def __init__(self, white: Whitened, tail: int) -> None:
        """Begin with a layer whose taps are ordered (head, tail), `tail` of them in the last layers."""
        outputs, inputs, taps = white.best.shape
        self._tail, self._width = tail, inputs * taps // tail
        self._second = white.second.reshape(self._width, tail, self._width, tail)
        cross = white.best.flatten(1) @ white.second
        self._cross = cross.reshape(outputs, self._width, tail)
        self.total = float((cross * white.best.flatten(1)).sum())

    def errors(self, features: Float[Tensor, "n width"], counts: Sequence[int]) -> list[Float[Tensor, "ranks"]]:
        """The error for each rank from 0 to the number of outputs, with the first so many features; for each count."""
        explained = self._explained(features)
        errors = []
        for count in counts:
            part = explained[: count * self._tail]
            gains = torch.linalg.eigvalsh(part.mT @ part).flip(0).clamp(min=0)
            errors.append((self.total - torch.cat([gains.new_zeros(1), gains.cumsum(0)])).clamp(min=0))
        return errors

    def error(self, features: Float[Tensor, "n width"], rank: int) -> float:
        """The error with all features and a rank."""
        gains = torch.linalg.svdvals(self._explained(features))[:rank].square()
        return max(0.0, self.total - float(gains.sum()))

    def solve(
        self, features: Float[Tensor, "n width"], rank: int
    ) -> tuple[Float[Tensor, "rank n tail"], Float[Tensor, "outputs rank"]]:
        """The layer with the remaining taps, and the 1 × 1 layer to the outputs, whose columns are orthonormal."""
        moments, cross = self._moments(features)
        factor = cholesky(moments)
        explained = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
        _, vectors = torch.linalg.eigh(explained.mT @ explained)
        outputs = vectors.flip(1)[:, :rank]
        core = torch.linalg.solve_triangular(factor.mT, explained @ outputs, upper=True).mT
        return core.reshape(rank, len(features), self._tail), outputs

    def _explained(self, features: Float[Tensor, "n width"]) -> Float[Tensor, "features outputs"]:
        """Targets in terms of features that do not depend on each other, those of the first n being the first."""
        moments, cross = self._moments(features)
        explained: Tensor = torch.linalg.solve_triangular(cholesky(moments), cross.mT, upper=False)
        return explained

    def _moments(
        self, features: Float[Tensor, "n width"]
    ) -> tuple[Float[Tensor, "features features"], Float[Tensor, "outputs features"]]:
        """Second moments of features, ordered (n, tail), and of targets with them."""
        half = torch.tensordot(features, self._second, dims=([1], [0]))
        whole = torch.tensordot(half, features, dims=([2], [1])).permute(0, 1, 3, 2)
        size = len(features) * self._tail
        cross = torch.einsum("owj,nw->onj", self._cross, features)
        return whole.reshape(size, size), cross.reshape(len(cross), size)
