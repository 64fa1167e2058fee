"""The samples themselves: for methods that draw minibatches.

A *row* is what the layer's batch dimension counts: an image for a convolution, a position for a linear layer (whatever
dimensions stand before its features are flattened, so that windowed attention or time-first sequences work alike).
One calibration sample gives `rows / samples` rows, and a minibatch of n samples takes n times as many rows, drawn from
all of them without replacement.
"""

from __future__ import annotations

import bisect
import itertools
from typing import Self, final

import torch
from torch import Tensor

from roundwise.graph.matrix import LinearMap
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
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._starts: list[int] = [0]

    @classmethod
    def empty(cls, layer: LinearMap, samples: int) -> Self:
        return cls(layer, samples)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        inputs, targets = self.layer.as_rows(inputs), self.layer.as_rows(targets)
        self._batches.append((inputs, targets))
        self._starts.append(self._starts[-1] + inputs.shape[0])

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return self._starts[-1]

    def draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A random minibatch of about `samples` calibration samples: `(inputs, targets)` in float32.

        Args:
            samples: how many samples' worth of rows; more than there are gives all of them.
            generator: on the CPU, so that the draw is the same on every device.
        """
        count = min(self.rows, max(1, round(samples * self.rows / self.samples)))
        chosen = torch.randperm(self.rows, generator=generator)[:count].sort().values.tolist()
        inputs, targets = [], []
        for start, (batch_inputs, batch_targets) in zip(self._starts, self._batches, strict=False):
            first = bisect.bisect_left(chosen, start)
            last = bisect.bisect_left(chosen, start + batch_inputs.shape[0])
            if first < last:
                local = torch.tensor([i - start for i in itertools.islice(chosen, first, last)])
                local = local.to(batch_inputs.device)
                inputs.append(batch_inputs.index_select(0, local))
                targets.append(batch_targets.index_select(0, local))
        device = self.layer.device
        return torch.cat(inputs).to(device).float(), torch.cat(targets).to(device).float()
