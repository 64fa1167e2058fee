"""Empirical bias correction: subtract the mean error of each output channel, measured on samples, from its bias.

    b̂ = b + E[y] − E[ŷ] = argmin over b̂ of E ‖W x − (Ŵ x̂ + b̂ − b)‖²                           (Eq. 26)

because a squared error is smallest when the mean error is 0. This corrects one effect of nearest rounding, a shifted
mean. AdaRound minimises the same error by the choice of codes, of which there are many more than biases (Table 6).

The means are over all calibration samples and all positions. x̂ are the layer's inputs from the network so far, whose
biases are already corrected; y are the float network's outputs. Outputs are compared before the nonlinearity, as in the
source. So the correction also removes the mean error that comes from earlier layers.

A rounding method with `free_bias` sets the bias too: on the samples that it uses, and for the outputs after the
nonlinearity. If both are used, the correction removes the mean error that is left, measured on all samples before the
nonlinearity.
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
    """Subtract the mean error of each output channel over the calibration samples from its bias.

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
