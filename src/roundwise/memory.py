"""Where activations wait between two layers: in memory up to a budget, beyond it in memory-mapped files.

A file is unlinked as soon as it is mapped, so the operating system gives its space back when the tensor is dropped, or
the process ends, however it ends. (Where open files cannot be unlinked the temporary folder is removed at the end.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self, final

import psutil
import torch
from torch import Tensor

from roundwise.errors import MemoryBudgetError
from roundwise.report import human_bytes


def default_budget(device: torch.device) -> int:
    """Half of the memory that is free now, on the device where the network runs."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return _available() // 2


def _available() -> int:
    """Free memory in bytes: the machine's, or what a container's limit leaves of it."""
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no control groups here, or no limit ("max")
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        available = min(available, max(0, limit - used))
    return available


@final
class ActivationStore:
    """Holds tensors, counts their bytes, and puts on disk what exceeds the budget.

    Attributes:
        budget: bytes of activations that stay in memory.
        in_memory, on_disk: bytes held now.
        peak: the largest sum of the two so far.
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        self.budget, self.device = budget, device
        self.in_memory = self.on_disk = self.peak = 0
        self._folder: Path | None = None
        self._held: set[int] = set()
        self._files = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def check_disk(self, bytes_needed: int) -> None:
        """Raise if so much could not be put on disk.

        Raises:
            MemoryBudgetError: says what is needed, what there is, and what to change.
        """
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if bytes_needed > free:
            raise MemoryBudgetError(
                f"the activations exceed the memory budget of {human_bytes(self.budget)} by "
                f"{human_bytes(bytes_needed)}, but the temporary folder {tempfile.gettempdir()} has only "
                f"{human_bytes(free)} free. Use fewer calibration samples, a larger memory budget, or set TMPDIR to a "
                "folder on a larger disk."
            )

    def hold(self, tensor: Tensor) -> Tensor:
        """Take a tensor into custody and return what to keep instead: itself, or its copy on disk."""
        if id(tensor) in self._held:
            return tensor
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()  # a view would keep all of its base alive
        spill = self.in_memory + tensor.nbytes > self.budget and tensor.numel() > 0
        if spill:
            tensor = self._to_disk(tensor)
            self.on_disk += tensor.nbytes
        else:
            self.in_memory += tensor.nbytes
        self._held.add(id(tensor))
        weakref.finalize(tensor, self._forget, id(tensor), tensor.nbytes, spill)
        self.peak = max(self.peak, self.in_memory + self.on_disk)
        return tensor

    def adopt(self, tensor: Tensor) -> Tensor:
        """Take in a slice of the caller's own tensor: it is neither copied nor counted, only fetched when needed."""
        self._held.add(id(tensor))
        weakref.finalize(tensor, self._held.discard, id(tensor))
        return tensor

    def fetch(self, tensor: Tensor) -> Tensor:
        """A held tensor where the network can use it."""
        return tensor.to(self.device) if id(tensor) in self._held else tensor

    def _forget(self, key: int, count: int, spilled: bool) -> None:
        self._held.discard(key)
        if spilled:
            self.on_disk -= count
        else:
            self.in_memory -= count

    def _to_disk(self, tensor: Tensor) -> Tensor:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="roundwise-"))
        path = self._folder / str(self._files)
        self._files += 1
        try:
            mapped = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
        except RuntimeError as error:
            raise MemoryBudgetError(
                f"cannot put {human_bytes(tensor.nbytes)} of activations into {self._folder}: {error}. "
                "Free some disk space, or set TMPDIR to a folder on a larger disk."
            ) from error
        if os.name == "posix":
            path.unlink()
        mapped = mapped.view(tensor.shape)
        return mapped.copy_(tensor)
