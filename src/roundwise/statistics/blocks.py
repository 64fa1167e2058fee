"""The samples of a block of layers, for methods that train the whole block on minibatches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, final

import torch
from torch import Tensor

from roundwise.graph.unit import Unit


class BlockStatistic(ABC):
    """A summary of the samples of a block, made batch by batch."""

    @classmethod
    @abstractmethod
    def empty(cls, unit: Unit, samples: int, generator: torch.Generator) -> Self:
        """A statistic before the first batch.

        Args:
            unit: the block.
            samples: number of calibration samples that there will be.
            generator: for all random choices; on the CPU.
        """

    @abstractmethod
    def add(self, inputs: Sequence[Tensor], targets: Tensor, samples: int) -> None:
        """Add one batch.

        Args:
            inputs: the block's inputs in the network so far, in the order of `Unit.inputs`.
            targets: the block's output in the reference network.
            samples: number of calibration samples in the batch.
        """

    @classmethod
    @abstractmethod
    def bytes_needed(cls, unit: Unit, samples: int) -> int:
        """Bytes of the statistic and of a solver's work with it, at most, without the activations; for the plan."""


@final
class BlockSamples(BlockStatistic):
    """All inputs and targets of a block. It keeps references to the stream's tensors and copies nothing.

    Attributes:
        unit: the block.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._batches: list[tuple[Sequence[Tensor], Tensor]] = []

    @classmethod
    def empty(cls, unit: Unit, samples: int, generator: torch.Generator) -> Self:
        return cls(unit)

    def add(self, inputs: Sequence[Tensor], targets: Tensor, samples: int) -> None:
        self._batches.append((tuple(inputs), targets))

    @classmethod
    def bytes_needed(cls, unit: Unit, samples: int) -> int:
        # For each weight a solver holds four float32 numbers: the weight, its gradient, and Adam's two moments.
        return sum(4 * 4 * unit.graph.constants[layer.weight].numel() for layer in unit.layers)

    def draw(self, samples: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Draw a random minibatch, without replacement.

        Args:
            samples: number of samples; if there are fewer, all are returned.
            generator: on the CPU, so that the draw is the same on every device.

        Returns:
            New tensors of inputs and targets, with samples along the first dimension; the caller may change them.
        """
        sizes = [targets.shape[0] for _, targets in self._batches]
        chosen = torch.randperm(sum(sizes), generator=generator)[:samples].sort().values
        parts: list[tuple[list[Tensor], Tensor]] = []
        start = 0
        for (inputs, targets), size in zip(self._batches, sizes, strict=True):
            items = chosen[(chosen >= start) & (chosen < start + size)] - start
            parts.append(([_items(x, items) for x in inputs], _items(targets, items)))
            start += size
        inputs_of_all = [torch.cat(columns) for columns in zip(*(x for x, _ in parts), strict=True)]
        return inputs_of_all, torch.cat([targets for _, targets in parts])


def _items(values: Tensor, items: Tensor) -> Tensor:
    return values.index_select(0, items.to(values.device))
