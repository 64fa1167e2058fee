"""Keep activations between two layers: in memory up to a budget, and in memory-mapped files beyond it.

The store counts the bytes of storages. Several views of one storage count once. A view of a part of a storage is copied
first, because it would keep the whole storage alive. A storage stops counting when its last tensor is freed.

The files have no names. So the operating system frees the disk space when the tensor is freed or the process ends, even
by a crash. (Where a file without a name cannot be mapped, files lie in a folder that is removed at the end.)

The budget holds for the memory that the process occupies, too: what was freed and what was read from a file is given
back from time to time (`resident.py`).
"""

from __future__ import annotations

import contextlib
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

from roundwise.engine.resident import drop_pages, return_freed_memory
from roundwise.errors import MemoryBudgetError
from roundwise.wording import human_bytes

KEPT = 16 << 20
"""At most this number of bytes is not given back to the operating system yet: of memory that was freed, because its
content went to disk or is not needed any more, and of files that were read. More take more memory, fewer more time."""

_ALIGNMENT = 64
"""PyTorch allocates tensors at multiples of 64 bytes. At other addresses, matrix kernels may round differently."""


HAS_UNNAMED_FILES = Path("/dev/fd").is_dir()
"""Whether an open file without a name can be opened again, to map it."""


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
        self._mapped: set[int] = set()  # ids of storages on disk
        self._folder: Path | None = None
        self._files = 0
        self._freed = 0  # bytes since the last `return_freed_memory`
        self._read: dict[int, weakref.ref[UntypedStorage]] = {}  # by id; the one that was read last is the last

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
                self._mapped.add(id(storage))
                self.on_disk += count
            else:
                self.in_memory += count
            if self._freed >= KEPT:
                return_freed_memory()
                self._freed = 0
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
        if (storage := tensor.untyped_storage()) and id(storage) in self._mapped:
            self._note_reading(storage)
        tensor = tensor.to(self.device)
        return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()

    def _uncount(self, storage: int, count: int, spilled: bool) -> None:
        self._counted.discard(storage)
        self._mapped.discard(storage)
        self._read.pop(storage, None)
        if spilled:
            self.on_disk -= count
        else:
            self.in_memory -= count
            self._freed += count

    def _to_disk(self, tensor: Tensor) -> Tensor:
        """A copy on disk with the same strides, so that layers compute exactly the same with it."""
        tensor = tensor.resolve_conj().resolve_neg()
        storage = tensor.untyped_storage()
        try:
            mapped = self._unnamed_file(storage) if HAS_UNNAMED_FILES else self._file_in_folder(storage)
        except (OSError, RuntimeError) as error:
            raise MemoryBudgetError(
                f"cannot write {human_bytes(storage.nbytes())} of activations to the temporary folder "
                f"{self._folder or tempfile.gettempdir()}: {error}. Free some disk space, or set TMPDIR to a folder "
                "on a larger disk."
            ) from error
        self._freed += storage.nbytes()
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(mapped.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())

    def _unnamed_file(self, storage: UntypedStorage) -> Tensor:
        """A copy in a file that has no name. It is written before it is mapped, so that its pages take no memory."""
        with tempfile.TemporaryFile(prefix="roundwise-", buffering=0) as file:
            rest = torch.empty(0, dtype=torch.uint8).set_(storage.cpu()).numpy()
            while len(rest):
                rest = rest[file.write(rest.data) :]
            return _mapped(f"/dev/fd/{file.fileno()}", storage.nbytes())

    def _file_in_folder(self, storage: UntypedStorage) -> Tensor:
        """A copy in a file of the store's folder."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="roundwise-"))
        path = self._folder / str(self._files)
        self._files += 1
        mapped = _mapped(str(path), storage.nbytes())
        mapped.untyped_storage().copy_(storage)
        return mapped

    def _note_reading(self, storage: UntypedStorage) -> None:
        """Drop the pages of files that were read before this one, if they are too many together."""
        self._read.pop(id(storage), None)
        others = [it for reference in self._read.values() if (it := reference()) is not None]
        excess = storage.nbytes() + sum(it.nbytes() for it in others) - KEPT
        for other in others:
            if excess <= 0:
                break
            drop_pages(other)
            self._read.pop(id(other), None)
            excess -= other.nbytes()
        self._read[id(storage)] = weakref.ref(storage)


def _mapped(path: str, size: int) -> Tensor:
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def _call_when_freed(owner: Tensor | UntypedStorage, function: object, *arguments: object) -> None:
    weakref.finalize(owner, function, *arguments).atexit = False  # type: ignore[arg-type]
