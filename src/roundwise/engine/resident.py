"""Give memory back to the operating system that the process does not need now, although it could keep it.

Two kinds of memory stay with a process longer than a memory budget allows:

- The C library keeps what is freed, for later. If buffers of changing sizes come and go, as when samples are read and
  written to disk, later ones do not fit into the holes of earlier ones, and the process grows by all that it has read.
- Pages of a mapped file stay once they were read, as long as the file is mapped.

Both functions do nothing where the operating system has no such call.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
from collections.abc import Callable

from torch import UntypedStorage


def return_freed_memory() -> None:
    """Return what was freed and is kept by the C library. It takes a few milliseconds."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(ctypes.c_size_t(0))


def drop_pages(mapped: UntypedStorage) -> None:
    """Drop the pages of a file that is mapped as a whole and shared; they are read again when they are used."""
    advise = _function("madvise")
    if advise is not None and mapped.nbytes():
        advise(ctypes.c_void_p(mapped.data_ptr()), ctypes.c_size_t(mapped.nbytes()), ctypes.c_int(mmap.MADV_DONTNEED))


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of this name."""
    try:
        function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows
        return None
    return function
