"""How long one run of a network file takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from roundwise.runtimes.interface import Array, OpenFile


@final
@dataclass(frozen=True)
class Timing:
    """Seconds of each run of a file, in the order in which the runs were made."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the runs took at most this many seconds."""
        return statistics.median(self.seconds)


def time_file(file: OpenFile, inputs: Mapping[str, Array], *, runs: int = 20, warm_up: int = 3) -> Timing:
    """Run a file again and again on the same inputs, and measure each run.

    Args:
        file: what a runtime has opened.
        inputs: by the names of the file's inputs.
        runs: that are measured, at least 1.
        warm_up: runs before those, which are not measured: the first ones allocate memory and fill caches.

    Raises:
        InferenceError: the runtime fails on the inputs.
        ValueError: no run is to be measured.
    """
    if runs < 1 or warm_up < 0:
        raise ValueError(f"runs={runs}, warm_up={warm_up}: give at least 1 run, and a warm-up of 0 or more.")
    for _ in range(warm_up):
        file.run(inputs)
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        file.run(inputs)
        seconds.append(time.perf_counter() - begin)
    return Timing(tuple(seconds))
