"""Several processes that train one network together: who they are, and the two things they exchange.

Each process has a copy of the network and works on its part of every batch. What the parts give is summed, so each copy
takes the same step as one process would take with the whole batch:

    ∇ loss(batch) = Σ over processes of ∇ loss(part), where a part's loss is divided by the size of the batch

PyTorch's own `DistributedDataParallel` averages in place of this sum, which is the same only where all parts have the
same size. The processes are started by torchrun; `torch.distributed.init_process_group` has been called in each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from roundwise.errors import RecipeError


@final
@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: the number of this process, from 0.
        count: of all processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def present(cls) -> Processes:
        """Those of the default process group; this process alone if there is none.

        Raises:
            RecipeError: torchrun has started several processes, and nothing connects them.
        """
        if not dist.is_available():
            return cls()
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if dist.is_torchelastic_launched() and count > 1:
            raise RecipeError(
                f"torchrun has started {count} processes, and each would train a network of its own. Call "
                "torch.distributed.init_process_group() before, so that they train one network together."
            )
        return cls()

    @property
    def first(self) -> bool:
        """Whether this process writes files and tells the progress."""
        return self.rank == 0

    @torch.no_grad()
    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all processes in the place of each tensor, all in one exchange per dtype."""
        if self.count == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for alike in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            dist.all_reduce(flat)
            for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def total(self, number: float, device: torch.device) -> float:
        """The sum of a number over all processes."""
        if self.count == 1:
            return number
        value = torch.tensor(number, dtype=torch.float64, device=device)
        self.sum([value])
        return float(value)

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's tensors in the place of those of all others."""
        for tensor in tensors if self.count > 1 else ():
            dist.broadcast(tensor, src=0)
