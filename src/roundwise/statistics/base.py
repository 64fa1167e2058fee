"""The interface of a statistic of a layer's samples, and the statistic that keeps nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from roundwise.graph.matrix import LinearMap


class Addend(NamedTuple):
    """The tensor that is added to a layer's output, in the float network and in the network so far.

    It has the shape of the output.
    """

    float: Tensor
    quantized: Tensor


class Statistic(ABC):
    """A summary of one layer's samples, made batch by batch.

    Attributes:
        from_samples: whether it needs samples; False if a run without data can have it.
        forward_passes: the cost of collecting it and solving with it, in forward passes of the layer over all samples;
            for the plan's estimate of time.
    """

    from_samples: ClassVar[bool] = True
    forward_passes: ClassVar[float] = 0.0

    @classmethod
    @abstractmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        """A statistic before the first batch.

        Args:
            layer: the linear map between the inputs and the targets.
            samples: number of calibration samples that there will be.
            generator: for all random choices; on the CPU.
        """

    @abstractmethod
    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        """Add one batch.

        Args:
            inputs: the layer's input in the network so far; in the float network for a solver with `float_inputs`.
            targets: the layer's output in the float network, before any nonlinearity.
            samples: number of calibration samples in the batch.
        """

    def add_sum(self, inputs: Tensor, targets: Tensor, samples: int, addend: Addend) -> None:
        """Add one batch whose y is added to another branch r, for an `addition_aware` solver: targets are y + r − r̂.

        Here the targets are a new tensor. A statistic that keeps targets should compute them later instead.
        """
        reference, current = (values.to(targets.device, torch.float32) for values in addend)
        self.add(inputs, targets + (reference - current), samples)

    @classmethod
    def bytes_needed(cls, layer: LinearMap, samples: int, positions: int) -> int:
        """Bytes of the statistic and of a solver's work with it, at most, without the activations; for the plan.

        Args:
            layer: the linear map.
            samples: number of calibration samples that there will be.
            positions: number of the layer's output positions in one sample: pixels of an image, tokens of a text.
        """
        return 0


@final
class Nothing(Statistic):
    """For methods that use the weights only: it keeps nothing."""

    from_samples: ClassVar[bool] = False

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls()

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        pass
