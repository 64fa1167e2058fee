"""The samples themselves: for methods that draw minibatches.

A *row* is what the layer's batch dimension counts: an image for a convolution, a position for a linear layer (whatever
dimensions stand before its features are flattened, so that windowed attention or time-first sequences work alike).
One calibration sample gives `rows / samples` rows, and a minibatch of n samples takes n times as many rows, drawn from
all of them without replacement. Which rows depends on the generator alone, not on the batches in which they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, final

import torch
from torch import Tensor

from roundwise.graph.matrix import LinearMap, fast_format
from roundwise.statistics.base import Statistic


@final
class Samples(Statistic):
    """Inputs and targets of one layer, batch by batch, kept where the stream keeps them (nothing is copied).

    Attributes:
        layer: the linear map between them.
        samples: how many calibration samples the rows come from.
    """

    def __init__(self, layer: LinearMap, samples: int) -> None:
        self.layer = layer
        self.samples = samples
        self._inputs: list[Tensor] = []
        self._targets: list[Tensor] = []
        self._starts: list[int] = [0]

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls(layer, samples)

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        self._inputs.append(self.layer.as_rows(inputs))
        self._targets.append(self.layer.as_rows(targets))
        self._starts.append(self._starts[-1] + self._inputs[-1].shape[0])

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return self._starts[-1]

    def draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random minibatch of about `samples` calibration samples.

        Args:
            samples: how many samples' worth of rows; more than there are gives all of them.
            generator: on the CPU, so that the draw is the same on every device.

        Returns:
            Inputs and targets on the layer's device, float32 whatever the model's dtype; the caller's to change.
        """
        count = min(self.rows, max(1, round(samples * self.rows / self.samples)))
        rows = _choose(self.rows, count, generator)
        starts = torch.tensor(self._starts)
        batch = torch.searchsorted(starts, rows, right=True) - 1
        counts = torch.bincount(batch, minlength=len(self._inputs)).tolist()
        places = rows - starts[batch]
        here = places.to(self.layer.device)  # in one go: each copy to an accelerator waits for what it is doing
        per_batch = list(zip(places.split(counts), here.split(counts), strict=True))
        return self._gather(self._inputs, per_batch, counts), self._gather(self._targets, per_batch, counts)

    def _gather(
        self, batches: Sequence[Tensor], per_batch: Sequence[tuple[Tensor, Tensor]], counts: Sequence[int]
    ) -> Tensor:
        """The chosen rows of every batch in one tensor; their places are given on the CPU and on the layer's device."""
        device, shape = self.layer.device, (sum(counts), *batches[0].shape[1:])
        gathered = torch.empty(shape, dtype=torch.float32, device=device, memory_format=_fast_layout(shape, device))
        for batch, (rows, here), count, place in zip(batches, per_batch, counts, gathered.split(counts), strict=True):
            if count and (batch.dtype, batch.device) == (gathered.dtype, gathered.device):
                torch.index_select(batch, 0, here, out=place)
            elif count:
                place.copy_(batch.index_select(0, here if batch.device == device else rows))
        return gathered


def _choose(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `rows`, every set of them equally likely, in ascending order."""
    if 2 * count > rows:
        return torch.randperm(rows, generator=generator)[:count].sort().values
    # Shuffling is slow where there are many, and a linear layer can have millions. Draw as many as are missing, until
    # none is.
    chosen = torch.zeros(rows, dtype=torch.bool)
    while missing := count - int(chosen.count_nonzero()):
        chosen[torch.randint(rows, (missing,), generator=generator)] = True
    return chosen.nonzero().squeeze(1)


def _fast_layout(shape: Sequence[int], device: torch.device) -> torch.memory_format:
    """How a minibatch lies in memory: on a CPU, convolutions and their gradients are up to 4 times faster this way."""
    return fast_format(len(shape)) if device.type == "cpu" else torch.contiguous_format
