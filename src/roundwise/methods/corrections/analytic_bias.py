"""Analytic bias correction: the mean error that rounding leaves, from batch-norm's statistics alone.

    b̂ = b − (Ŵ − W) E[x]

E[x], the expected input of each column of the layer's matrix, is what `graph/analysis/moments.py` carries along the
graph from the mean β and the deviation γ that batch-norm gave each channel, through clipped normals. No sample is
needed.

It is the *float* network's E[x]. The source assumes that the layers before, which are corrected already, give the same
means; errors that a correction leaves (what quantized activations add, where a ReLU makes a mean of a variance) are not
seen. With samples at hand, `EmpiricalBias` sees all of it.

Where nothing tells E[x], as for the network's first layer and for all that reads the output of a layer without
batch-norm, the bias stays, and the layer's note says so. Places at the border of a padded image, whose sums have fewer
terms, count as all others.
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
    """Let the bias take up the mean error that batch-norm's statistics let expect; needs no data.

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
