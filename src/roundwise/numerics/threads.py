"""Results that do not depend on the number of threads.

Matrix products and convolutions of PyTorch in float32 give the same numbers with any number of threads. Decompositions
of matrices do not, and sums over a whole tensor do not: threads add parts, and there are as many parts as threads.
Where a code hangs on such a result, it is computed in one thread. This costs little, since what comes before and after
it is matrix products.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on the CPU in one thread; afterwards it has as many threads as before."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
