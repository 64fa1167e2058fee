"""Keep activations between two layers: in memory up to a budget, and in memory-mapped files beyond it.

The store counts the bytes of storages. Several views of one storage count once. A view of a part of a storage is copied
first, because it would keep the whole storage alive. A storage stops counting when its last tensor is freed.

A file is deleted from its folder as soon as it is mapped. So the operating system frees the disk space when the tensor
is freed or the process ends, even by a crash. (Where open files cannot be deleted, the folder is removed at the end.)
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
"""PyTorch allocates tensors at multiples of 64 bytes. At other addresses, matrix kernels may round differently."""


def default_budget(device: torch.device) -> int:
    """Half of the memory that is free now on the device of the network."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free // 2
    return _available() // 2


def _available() -> int:
    """Free bytes of memory: of the machine, or of the container if its limit leaves less."""
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no control groups here, or no limit ("max")
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        available = min(available, max(0, limit - used))
    return available


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes that an `ActivationStore` would count for these tensors together."""
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
    """Holds tensors, counts their bytes, and moves a tensor to disk if it would exceed the memory budget.

    Attributes:
        budget: bytes of activations that may stay in memory; with a larger budget fewer tensors go to disk.
        device: the device of the network.
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
        """Raise if the temporary folder has fewer free bytes than needed.

        Raises:
            MemoryBudgetError: says how many bytes are needed and free, and what to change.
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
        """Count a tensor, and return the tensor to keep instead: itself, or a copy of it on disk.

        Raises:
            MemoryBudgetError: the tensor cannot be written to disk.
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
            _call_when_freed(storage, self._uncount, id(storage), count, spill)
        self._held.add(id(tensor))
        _call_when_freed(tensor, self._held.discard, id(tensor))
        self.peak = max(self.peak, self.in_memory + self.on_disk)
        return tensor

    def adopt(self, tensor: Tensor) -> Tensor:
        """Hold a slice of a tensor that the caller keeps anyway: it is not copied and does not count."""
        self._held.add(id(tensor))
        _call_when_freed(tensor, self._held.discard, id(tensor))
        return tensor

    def fetch(self, tensor: Tensor) -> Tensor:
        """A held tensor on the network's device, at an aligned address; it is copied if it is not there already."""
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
        """A copy on disk with the same strides, so that layers compute exactly the same with it."""
        tensor = tensor.resolve_conj().resolve_neg()
        storage = tensor.untyped_storage()
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="roundwise-"))
            path = self._folder / str(self._files)
            self._files += 1
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk raises an error here, instead of a crash on writing
                    os.posix_fallocate(file.fileno(), 0, storage.nbytes())
            mapped = torch.from_file(str(path), shared=True, size=storage.nbytes(), dtype=torch.uint8)
        except (OSError, RuntimeError) as error:
            raise MemoryBudgetError(
                f"cannot write {human_bytes(storage.nbytes())} of activations to the temporary folder "
                f"{self._folder or tempfile.gettempdir()}: {error}. Free some disk space, or set TMPDIR to a folder "
                "on a larger disk."
            ) from error
        if os.name == "posix":
            path.unlink()
        mapped.untyped_storage().copy_(storage)
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(mapped.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


def _call_when_freed(owner: Tensor | UntypedStorage, function: object, *arguments: object) -> None:
    weakref.finalize(owner, function, *arguments).atexit = False  # type: ignore[arg-type]
