"""The interface of a statistic, and the empty one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self, final

from torch import Tensor

from roundwise.graph.matrix import LinearMap


class Statistic(ABC):
    """What one layer's samples are reduced to."""

    @classmethod
    @abstractmethod
    def empty(cls, layer: LinearMap, samples: int) -> Self:
        """A statistic of nothing yet, for a layer that will see `samples` calibration samples."""

    @abstractmethod
    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            inputs: the layer's input in the network whose earlier layers are already quantized.
            targets: the layer's output (before any activation function) in the float network.
        """


@final
class Nothing(Statistic):
    """For methods that look at the weights alone."""

    @classmethod
    def empty(cls, layer: LinearMap, samples: int) -> Self:
        return cls()

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        pass
