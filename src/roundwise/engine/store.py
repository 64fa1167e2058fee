"""Where activations wait between two layers: in memory up to a budget, beyond it in memory-mapped files.

What is counted is storage: views of one storage count once, and a view of something larger is copied first, since it
would keep all of it alive. A storage stops counting when the last tensor that uses it is gone.

A file is unlinked as soon as it is mapped, so the operating system gives its space back when the tensor is dropped, or
the process ends, however it ends. (Where open files cannot be unlinked the temporary folder is removed at the end.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, final

import psutil
import torch
from torch import Tensor, UntypedStorage

from roundwise.errors import MemoryBudgetError
from roundwise.wording import human_bytes

_ALIGNMENT = 64
"""Bytes to which PyTorch aligns what it allocates; matrix kernels may give other last digits where data is not."""


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


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """What an `ActivationStore` would count for these tensors together."""
    whole: dict[UntypedStorage, int] = {}
    parts = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() > tensor.nbytes:
            parts += tensor.nbytes
        else:
            whole[storage] = storage.nbytes()
    return parts + sum(whole.values())


@final
class ActivationStore:
    """Holds tensors, counts their bytes, and puts on disk what exceeds the budget.

    Attributes:
        budget: bytes of activations that stay in memory.
        device: where the network computes.
        in_memory, on_disk: bytes held now.
        peak: the largest sum of the two so far.
    """

    def __init__(self, budget: int, device: torch.device) -> None:
        self.budget, self.device = budget, device
        self.in_memory = self.on_disk = self.peak = 0
        self._held: set[int] = set()  # ids of tensors
        self._counted: set[int] = set()  # ids of storages
        self._folder: Path | None = None
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
        """Take a tensor into custody and return what to keep instead: itself, or its copy on disk.

        Raises:
            MemoryBudgetError: it cannot be put on disk.
        """
        if id(tensor) in self._held:
            return tensor
        if tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor = tensor.clone()
        storage = tensor.untyped_storage()
        count = storage.nbytes()
        if id(storage) not in self._counted:
            spill = count > 0 and self.in_memory + count > self.budget
            if spill:
                tensor = self._to_disk(tensor)
                storage = tensor.untyped_storage()
                self.on_disk += count
            else:
                self.in_memory += count
            self._counted.add(id(storage))
            _when_gone(storage, self._uncount, id(storage), count, spill)
        self._held.add(id(tensor))
        _when_gone(tensor, self._held.discard, id(tensor))
        self.peak = max(self.peak, self.in_memory + self.on_disk)
        return tensor

    def adopt(self, tensor: Tensor) -> Tensor:
        """Take in a slice of the caller's own tensor: it is neither copied nor counted, only fetched when needed."""
        self._held.add(id(tensor))
        _when_gone(tensor, self._held.discard, id(tensor))
        return tensor

    def fetch(self, tensor: Tensor) -> Tensor:
        """A held tensor as the network computes with it: on its device, and aligned as a tensor of its own would be."""
        if id(tensor) not in self._held:
            return tensor
        tensor = tensor.to(self.device)
        return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()

    def _uncount(self, storage: int, count: int, spilled: bool) -> None:
        self._counted.discard(storage)
        if spilled:
            self.on_disk -= count
        else:
            self.in_memory -= count

    def _to_disk(self, tensor: Tensor) -> Tensor:
        """A copy with the same strides, so that a layer computes on it exactly as it would have."""
        tensor = tensor.resolve_conj().resolve_neg()
        storage = tensor.untyped_storage()
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="roundwise-"))
            path = self._folder / str(self._files)
            self._files += 1
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk shows here, and not as a crash on writing
                    os.posix_fallocate(file.fileno(), 0, storage.nbytes())
            mapped = torch.from_file(str(path), shared=True, size=storage.nbytes(), dtype=torch.uint8)
        except (OSError, RuntimeError) as error:
            raise MemoryBudgetError(
                f"cannot put {human_bytes(storage.nbytes())} of activations into the temporary folder "
                f"{self._folder or tempfile.gettempdir()}: {error}. Free some disk space, or set TMPDIR to a folder "
                "on a larger disk."
            ) from error
        if os.name == "posix":
            path.unlink()
        mapped.untyped_storage().copy_(storage)
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(mapped.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _when_gone(thing: Tensor | UntypedStorage, call: object, *arguments: object) -> None:
    weakref.finalize(thing, call, *arguments).atexit = False  # type: ignore[arg-type]
