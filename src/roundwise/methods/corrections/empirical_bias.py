"""Empirical bias correction: the bias takes up the mean error that rounding leaves in each output channel.

    b̂ = b + E[y] − E[ŷ] = argmin over b̂ of E ‖W x − (Ŵ x̂ + b̂ − b)‖²                           (Eq. 26)

since a squared error is least when its mean is taken away. It treats one symptom of rounding to nearest, a shifted
mean; AdaRound minimises the same error by the codes, of which there are many more than biases (Table 6).

The means are over all calibration samples and all positions. x̂ are the inputs from the quantized layers before, whose
own biases are corrected already, and y are the float network's outputs, both before the activation function, as in the
source. So the mean error that is inherited from earlier layers goes too, not only what this layer's weights add.

A rounding method that sets the bias (`free_bias`) aims at the same mean, on the samples that it learns from and, before
a ReLU, with regard to that. The correction then comes on top: it measures what is left on all samples, before the
activation function, and takes that away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import Correction
from roundwise.statistics import Means


@final
@dataclass(frozen=True)
class EmpiricalBias(Correction[Means]):
    """Let the bias take up the mean error of each output channel over the calibration samples.

    References:
        Nagel et al., ICCV 2019, arXiv:1906.04721, Section 4.2; Nagel et al., arXiv:2004.10568, Eq. 26.
    """

    needs: ClassVar[type] = Means

    def shift(
        self,
        weight: Float[Tensor, "groups rows cols"],
        bias: Float[Tensor, "groups rows"],
        statistics: Means,
    ) -> Float[Tensor, "groups rows"]:
        return (statistics.target - statistics.output(weight) - bias).float()

    def note(self, statistics: Means) -> str:
        return ""
