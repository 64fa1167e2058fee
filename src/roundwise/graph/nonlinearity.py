"""The element-wise function that follows a layer: f_a in Eq. 25."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Nonlinearity:
    """A function of the layer's output.

    Attributes:
        function: element-wise, or with a parameter for each channel.
        limits: `(low, high)` if the function is clamp(·, low, high), such as (0, ∞) for ReLU and (0, 6) for ReLU6.
    """

    function: Callable[[Tensor], Tensor]
    limits: tuple[float, float] | None = None

    def __call__(self, values: Tensor) -> Tensor:
        return self.function(values)
