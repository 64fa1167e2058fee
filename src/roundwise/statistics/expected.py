"""What is known of a layer, or of a tensor, before any sample: expected from what training left in the network.

These statistics are not collected. Whoever plans the run makes them; shown samples, they learn nothing from them.
"""

from __future__ import annotations

from typing import ClassVar, Self, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.graph.analysis.moments import Spread
from roundwise.graph.matrix import LinearMap
from roundwise.statistics.base import Statistic
from roundwise.statistics.values import ValueStatistic


@final
class ExpectedMeans(Statistic):
    """The mean outputs of a layer for any weights, from the expected mean of each column's input.

    Attributes:
        inputs: E[x], float64 `[groups, cols]`; None where it is not known.
        target: E[W x] + b with the float weights, float64 `[groups, rows]`; None likewise.
        missing: why it is not known, or empty.
    """

    from_samples: ClassVar[bool] = False

    def __init__(
        self,
        layer: LinearMap,
        weight: Float[Tensor, "groups rows cols"] | None = None,
        inputs: Float[Tensor, "groups cols"] | None = None,
        missing: str = "nothing is known of what it reads",
    ) -> None:
        self.inputs, self.target, self.missing = inputs, None, "" if inputs is not None else missing
        if weight is not None and inputs is not None:
            bias = 0.0 if layer.bias is None else layer.bias.double().reshape(weight.shape[:2])
            self.target = self.output(weight) + bias

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls(layer)

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        pass

    def output(self, weight: Float[Tensor, "groups rows cols"]) -> Float[Tensor, "groups rows"]:
        """E[ŵ x] for the given weights, without the bias; float64. Only where the inputs are known."""
        assert self.inputs is not None
        return torch.einsum("grc,gc->gr", weight.double(), self.inputs)


@final
class ExpectedValues(ValueStatistic):
    """How the values of one tensor are distributed, channel by channel.

    Attributes:
        spread: None where it is not known.
    """

    from_samples: ClassVar[bool] = False

    def __init__(self, spread: Spread | None = None) -> None:
        self.lows, self.highs, self.spread = [], [], spread

    def add(self, values: Tensor) -> None:
        pass
