"""All samples of a layer, for methods that draw minibatches.

An *item* is one entry of the layer's batch dimension: an image for a convolution, a position for a linear layer. (All
dimensions before the features are flattened into items, so that windowed attention and time-first sequences work too.)
One calibration sample gives `items / samples` items. A minibatch of n samples has n times as many, drawn from all items
without replacement. The draw depends on the generator only, not on how the items were divided into batches.
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
    """All inputs and targets of one layer. It keeps references to the stream's tensors and copies nothing.

    Attributes:
        layer: the linear map between inputs and targets.
        samples: number of calibration samples.
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
        self._inputs.append(self.layer.as_items(inputs))
        self._targets.append(self.layer.as_items(targets))
        self._starts.append(self._starts[-1] + self._inputs[-1].shape[0])

    @property
    def items(self) -> int:
        """The number of items in all batches."""
        return self._starts[-1]

    def draw(self, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a random minibatch of items.

        Args:
            samples: the minibatch has as many items as this number of samples; if there are fewer, all items.
            generator: on the CPU, so that the draw is the same on every device.

        Returns:
            New float32 tensors of inputs and targets on the layer's device; the caller may change them.
        """
        count = min(self.items, max(1, round(samples * self.items / self.samples)))
        items = _draw_without_replacement(self.items, count, generator)
        starts = torch.tensor(self._starts)
        batch = torch.searchsorted(starts, items, right=True) - 1
        counts = torch.bincount(batch, minlength=len(self._inputs)).tolist()
        places = items - starts[batch]
        on_device = places.to(self.layer.device)  # one copy for all batches, since each copy waits for the accelerator
        per_batch = list(zip(places.split(counts), on_device.split(counts), strict=True))
        return self._gather(self._inputs, per_batch, counts), self._gather(self._targets, per_batch, counts)

    def _gather(
        self, batches: Sequence[Tensor], per_batch: Sequence[tuple[Tensor, Tensor]], counts: Sequence[int]
    ) -> Tensor:
        """The chosen items of all batches in one tensor; `per_batch` has their indices on the CPU and on the device."""
        device, shape = self.layer.device, (sum(counts), *batches[0].shape[1:])
        gathered = torch.empty(shape, dtype=torch.float32, device=device, memory_format=_fast_layout(shape, device))
        for batch, (on_cpu, on_device), part in zip(batches, per_batch, gathered.split(counts), strict=True):
            if len(part) and (batch.dtype, batch.device) == (gathered.dtype, gathered.device):
                torch.index_select(batch, 0, on_device, out=part)
            elif len(part):
                part.copy_(batch.index_select(0, on_device if batch.device == device else on_cpu))
        return gathered


def _draw_without_replacement(items: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `items` in ascending order; every set of numbers is equally likely."""
    if 2 * count > items:
        return torch.randperm(items, generator=generator)[:count].sort().values
    # A linear layer can have millions of items, and shuffling them all is slow. Draw as many numbers as are missing,
    # until there are enough different ones.
    chosen = torch.zeros(items, dtype=torch.bool)
    while missing := count - int(chosen.count_nonzero()):
        chosen[torch.randint(items, (missing,), generator=generator)] = True
    return chosen.nonzero().squeeze(1)


def _fast_layout(shape: Sequence[int], device: torch.device) -> torch.memory_format:
    """The memory format of a minibatch: channels-last makes convolutions and gradients up to 4 times faster on CPUs."""
    return fast_format(len(shape)) if device.type == "cpu" else torch.contiguous_format
