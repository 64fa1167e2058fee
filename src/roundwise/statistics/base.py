"""The interface of a statistic, and the empty one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from roundwise.graph.matrix import LinearMap


class Addend(NamedTuple):
    """What is added to a layer's output, in both networks; shaped as the output is."""

    float: Tensor
    quantized: Tensor


class Statistic(ABC):
    """What one layer's samples are reduced to.

    Attributes:
        from_samples: whether it is learnt from samples; False where a run without data can have it.
        forward_passes: what collecting it and solving with it cost, in forward passes of the layer over all samples;
            for the plan's estimate of time.
    """

    from_samples: ClassVar[bool] = True
    forward_passes: ClassVar[float] = 0.0

    @classmethod
    @abstractmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        """A statistic of nothing yet.

        Args:
            layer: the linear map between the inputs and the targets that it will see.
            samples: how many calibration samples there will be.
            generator: source of any randomness; on the CPU.
        """

    @abstractmethod
    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        """Take in one batch.

        Args:
            inputs: the layer's input in the network whose earlier layers are already quantized; or in the float
                network, for a solver with `float_inputs`.
            targets: the layer's output (before any activation function) in the float network.
            samples: how many calibration samples the batch holds.
        """

    def add_sum(self, inputs: Tensor, targets: Tensor, samples: int, addend: Addend) -> None:
        """Take in one batch where y is added to r, for a solver that is `addition_aware`: the target is y + r − r̂.

        A statistic that keeps targets does better to compute that itself: here it is a new tensor.
        """
        added, lacking = (values.to(targets.device, torch.float32) for values in addend)
        self.add(inputs, targets + (added - lacking), samples)

    @classmethod
    def bytes_needed(cls, layer: LinearMap, samples: int, positions: int) -> int:
        """What it and a solver's work on it occupy at most, beside the activations; for the plan.

        Args:
            layer: the linear map.
            samples: how many calibration samples there will be.
            positions: how many outputs of the layer each sample makes: places of an image, tokens of a text.
        """
        return 0


@final
class Nothing(Statistic):
    """For methods that look at the weights alone."""

    from_samples: ClassVar[bool] = False

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls()

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        pass
