"""How long one run of a network takes, and how much faster it is than another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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

    def times_as_fast_as(self, other: Timing) -> tuple[float, float, float]:
        """How many times as fast as `other`: the median over pairs of runs, and the quartiles below and above.

        Runs that follow each other directly have met the same load of the machine, so their ratio depends on it less
        than each of them does.
        """
        ratios = [theirs / own for own, theirs in zip(self.seconds, other.seconds, strict=True)]
        if len(ratios) == 1:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high


def time_alternately(runs: Sequence[Callable[[], object]], *, rounds: int = 20, warm_up: int = 3) -> list[Timing]:
    """Make runs in turn, again and again, and measure each; every second round goes backwards.

    Args:
        runs: functions that run one network each.
        rounds: in each of them, every run is made once; at least 1.
        warm_up: rounds before those, which are not measured: the first ones allocate memory and fill caches.

    Raises:
        ValueError: no round is to be measured.
    """
    if rounds < 1 or warm_up < 0:
        raise ValueError(f"rounds={rounds}, warm_up={warm_up}: give at least 1 round, and a warm-up of 0 or more.")
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(-warm_up, rounds):
        order = list(zip(runs, seconds, strict=True))
        for run, measured in order if number % 2 else reversed(order):
            begin = time.perf_counter()
            run()
            if number >= 0:
                measured.append(time.perf_counter() - begin)
    return [Timing(tuple(measured)) for measured in seconds]


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
    (timing,) = time_alternately([lambda: file.run(inputs)], rounds=runs, warm_up=warm_up)
    return timing
