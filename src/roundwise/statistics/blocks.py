"""The samples of a block: what methods that differentiate through a block of layers draw minibatches from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self, final

import torch
from torch import Tensor

from roundwise.graph.unit import Unit


class BlockStatistic(ABC):
    """What the samples of a block are reduced to."""

    @classmethod
    @abstractmethod
    def empty(cls, unit: Unit, samples: int, generator: torch.Generator) -> Self:
        """A statistic of nothing yet.

        Args:
            unit: the block.
            samples: how many calibration samples there will be.
            generator: source of any randomness; on the CPU.
        """

    @abstractmethod
    def add(self, inputs: Sequence[Tensor], targets: Tensor, samples: int) -> None:
        """Take in one batch.

        Args:
            inputs: the block's inputs in the network so far, in the order of `Unit.inputs`.
            targets: the block's output in the reference network.
            samples: how many calibration samples the batch holds.
        """

    @classmethod
    @abstractmethod
    def bytes_needed(cls, unit: Unit, samples: int) -> int:
        """What it and a solver's work on it occupy at most, beside the activations; for the plan."""


@final
class BlockSamples(BlockStatistic):
    """Inputs and targets of a block, batch by batch, kept where the stream keeps them (nothing is copied).

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
        # A solver holds float32 weights with gradients and the moments of an optimizer.
        return sum(4 * 4 * unit.graph.constants[layer.weight].numel() for layer in unit.layers)

    def draw(self, samples: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """A random minibatch: this many samples, or all where there are fewer.

        Args:
            samples: how many.
            generator: on the CPU, so that the draw is the same on every device.

        Returns:
            The inputs and the targets, with samples along the first dimension; the caller's to change.
        """
        sizes = [targets.shape[0] for _, targets in self._batches]
        chosen = torch.randperm(sum(sizes), generator=generator)[:samples].sort().values
        parts: list[tuple[list[Tensor], Tensor]] = []
        start = 0
        for (inputs, targets), size in zip(self._batches, sizes, strict=True):
            rows = chosen[(chosen >= start) & (chosen < start + size)] - start
            parts.append(([_rows(x, rows) for x in inputs], _rows(targets, rows)))
            start += size
        inputs_of_all = [torch.cat(columns) for columns in zip(*(x for x, _ in parts), strict=True)]
        return inputs_of_all, torch.cat([targets for _, targets in parts])


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    return values.index_select(0, rows.to(values.device))
