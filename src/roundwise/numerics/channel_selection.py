"""Which channels a layer can do without, from second moments: what each set of channels costs, and the LASSO for it.

A layer reads channels; each channel has one or more columns of its matrix, such as one for each tap of the kernel. Let
x_i be the columns of channel i, W_i the weights that read them, and S say how much the network's output feels errors of
the layer's rows. All moments are about the means, so the bias makes up for what is constant.

*The error of a set K of channels.* Without the others, the best weights are the regression of y on the columns of K,
and the error is

    e(K)  =  tr S G H⁻¹ Gᵀ  −  tr S G_K H_KK⁻¹ G_Kᵀ                                                                 (1)

more than that of the best weights for all channels.

*The LASSO.* He et al. (2017) multiply each channel by a number β_i and minimise E ‖y − Σ β_i W_i x_i‖² + λ ‖β‖₁, with
the weights as they are. As a quadratic function of β this needs the moments alone, and no samples:

    A_ij  =  tr S W_i H_ij W_jᵀ                b_i  =  tr S W_i G_iᵀ                                                 (2)

A and b of several layers that read the same channels add up. Where a layer reads other channels too, these keep their
weights, and what they give is no part of the target: b_i falls by the sum of A_ij over them.

References:
    He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, arXiv:1707.06168.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from roundwise.numerics.regression import Regression, cholesky

OTHERS = -1
"""The owner of a column that reads none of the channels in question."""


@final
@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads channels which may go.

    Attributes:
        weight: W, float64.
        regression: H, G and the means.
        metric: S.
        owner: for each column, the number of the channel that it reads, or `OTHERS`.
    """

    weight: Float[Tensor, "rows cols"]
    regression: Regression
    metric: Float[Tensor, "rows rows"]
    owner: Int[Tensor, "cols"]

    def columns(self, kept: Int[Tensor, "kept"]) -> Int[Tensor, "left"]:
        """The columns that are left with these channels, in order."""
        return (torch.isin(self.owner, kept.to(self.owner.device)) | (self.owner == OTHERS)).nonzero().flatten()

    def explained(self, columns: Int[Tensor, "left"] | None = None) -> float:
        """tr S G_K H_KK⁻¹ G_Kᵀ: how much of the targets' variance the best weights of some columns explain.

        Args:
            columns: by default all.
        """
        second, cross = self.regression.second, self.regression.cross
        if columns is not None:
            second, cross = second[columns[:, None], columns], cross[:, columns]
        half = torch.linalg.solve_triangular(cholesky(second), cross.mT, upper=False)
        return float(((half @ self.metric) * half).sum())

    def lasso(self, channels: int) -> tuple[Float[Tensor, "channels channels"], Float[Tensor, "channels"]]:
        """A and b of (2)."""
        second, cross = self.regression.second, self.regression.cross
        products = (self.weight.mT @ self.metric @ self.weight) * second
        target = (self.weight * (self.metric @ cross)).sum(0)
        # Sum over the columns of each channel; those of others come last.
        place = torch.where(self.owner == OTHERS, channels, self.owner)
        by_channel = products.new_zeros(channels + 1, len(place)).index_add_(0, place, products)
        by_channel = products.new_zeros(channels + 1, channels + 1).index_add_(1, place, by_channel)
        sums = target.new_zeros(channels + 1).index_add_(0, place, target)
        return by_channel[:channels, :channels], sums[:channels] - by_channel[:channels, channels]

    def energies(self, channels: int) -> Float[Tensor, "channels"]:
        """tr S W_i W_iᵀ: the squared size of the weights that read each channel."""
        energy = ((self.metric @ self.weight) * self.weight).sum(0)
        place = torch.where(self.owner == OTHERS, channels, self.owner)
        return energy.new_zeros(channels + 1).index_add_(0, place, energy)[:channels]
