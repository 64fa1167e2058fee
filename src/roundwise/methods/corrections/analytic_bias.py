"""Analytic bias correction: remove the mean error of rounding, computed from batch-norm's statistics alone.

    b̂ = b − (Ŵ − W) E[x]

E[x] is the expected input of each column of the layer's matrix. `graph/analysis/moments.py` computes it from the mean β
and the standard deviation γ that batch-norm gave each channel, with clipped normal distributions and without samples.

E[x] is that of the *float* network. The source assumes that the earlier layers, which are already corrected, have the
same means. So this method does not correct errors that remain after their correction, such as those of quantized
activations, or a change of the mean that a ReLU makes from a change of the variance. `EmpiricalBias` corrects these
too, but needs samples.

If E[x] is not known, as for the network's first layer and for a layer that reads the output of a layer without
batch-norm, the bias stays the same, and the layer's note says so. Positions at the border of a padded image, whose sums
have fewer terms, are treated like all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import Correction
from roundwise.statistics import ExpectedMeans


@final
@dataclass(frozen=True)
class AnalyticBias(Correction[ExpectedMeans]):
    """Subtract the expected mean error from the bias; it follows from batch-norm's statistics, without data.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, Section 4.2.
    """

    needs: ClassVar[type] = ExpectedMeans

    def shift(
        self,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"],
        statistics: ExpectedMeans,
    ) -> Float[Tensor, "groups rows"]:
        if statistics.target is None:
            return torch.zeros_like(bias, dtype=torch.float32)
        return (statistics.target - statistics.output(weight) - bias).float()

    def note(self, statistics: ExpectedMeans) -> str:
        return f"not corrected: {statistics.missing}" if statistics.missing else ""
