"""What a run tells while it runs. Pass a function that takes an event; `progress=print` is enough.

Planned         once, before the samples stream: what will happen and what it will take
PassStarted     where activations are quantized: before another pass over the samples, and what it is for
LayerStarted    before each layer's statistics
LayerFinished   after each layer, with its report and the time left
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from roundwise.report import LayerReport
from roundwise.wording import human_bytes, human_seconds, number_of


@final
@dataclass(frozen=True)
class Plan:
    """What a run will do, known before it starts.

    Attributes:
        layers: names of the layers that will be quantized, in order.
        samples: number of calibration samples.
        widest_bytes: activations held between layers at the widest point, both streams, all samples.
        widest_layer: the layer at which that is.
        working_bytes: what is needed on top: by one batch while it runs through the operations between two layers, or
            by one layer's statistics and solver.
        memory_budget: bytes of activations that stay in memory.
        seconds: an estimate from a few samples and the solvers' own counts of work; good to a factor of two or three.
    """

    layers: tuple[str, ...]
    samples: int
    widest_bytes: int
    widest_layer: str
    working_bytes: int
    memory_budget: int
    seconds: float

    @property
    def spilled_bytes(self) -> int:
        """How much will go to temporary files at the widest point."""
        return max(0, self.widest_bytes - self.memory_budget)

    def __str__(self) -> str:
        where = "all in memory"
        if self.spilled_bytes:
            where = f"{human_bytes(self.spilled_bytes)} of it in temporary files"
        return (
            f"plan: {number_of(len(self.layers), 'layer')}, {number_of(self.samples, 'sample')}; "
            f"at most {human_bytes(self.widest_bytes)} of activations (at {self.widest_layer}; {where}) "
            f"and {human_bytes(self.working_bytes)} for the work on them; about {human_seconds(self.seconds)}"
        )


@final
@dataclass(frozen=True)
class Planned:
    """The run is about to start."""

    plan: Plan

    def __str__(self) -> str:
        return str(self.plan)


@final
@dataclass(frozen=True)
class PassStarted:
    """The samples stream through the network once more; `purpose` says what for."""

    purpose: str

    def __str__(self) -> str:
        return f"{self.purpose} …"


@final
@dataclass(frozen=True)
class LayerStarted:
    """Layer number `index` (from 0) of `total` comes next."""

    name: str
    index: int
    total: int

    def __str__(self) -> str:
        return f"[{self.index + 1}/{self.total}] {self.name} …"


@final
@dataclass(frozen=True)
class LayerFinished:
    """A layer is done; `seconds_left` is estimated from the work done so far."""

    report: LayerReport
    index: int
    total: int
    seconds_left: float

    def __str__(self) -> str:
        layer = self.report
        return (
            f"[{self.index + 1}/{self.total}] {layer.name}: error {layer.error_nearest:.5f} → {layer.error:.5f}, "
            f"{layer.flips:.1%} flipped, {layer.seconds:.1f} s; {human_seconds(self.seconds_left)} left"
        )


Event = Planned | PassStarted | LayerStarted | LayerFinished
Progress = Callable[[Event], None]
