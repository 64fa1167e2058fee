"""Statistics expected from the batch-norms of the network: they need no samples.

They are computed before the run (`engine/tasks.py`, `engine/activations.py`); their `add` does nothing.
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
        inputs: E[x], float64 `[groups, cols]`; None if it is not known.
        target: E[W x] + b with the float weights, float64 `[groups, rows]`; None if E[x] is not known.
        missing: the reason why E[x] is not known, or empty.
    """

    from_samples: ClassVar[bool] = False

    def __init__(
        self,
        layer: LinearMap,
        weight: Float[Tensor, "groups rows cols"] | None = None,
        inputs: Float[Tensor, "groups cols"] | None = None,
        missing: str = "the mean of its inputs is not known",
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
        """E[ŵ x] for the given weights, without the bias; float64. `inputs` must be known."""
        assert self.inputs is not None
        return torch.einsum("grc,gc->gr", weight.double(), self.inputs)


@final
class ExpectedValues(ValueStatistic):
    """The expected distribution of the values of one activation.

    Attributes:
        spread: mean and deviation of each channel; None if they are not known.
    """

    from_samples: ClassVar[bool] = False

    def __init__(self, spread: Spread | None = None) -> None:
        self.lows, self.highs, self.ordinary, self.spread = [], [], [], spread

    def add(self, values: Tensor) -> None:
        pass
