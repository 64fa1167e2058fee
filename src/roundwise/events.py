"""Events that report the progress of a run. Pass a function that takes an event, for example `progress=print`.

Planned           once, before the first pass: the layers, and an estimate of memory and time
PassStarted       if activations are quantized: before each further pass over the samples, with its purpose
LayerStarted      before each layer
LayerFinished     after each layer, with its report and the estimated time left
StepsFinished     in training: every few seconds, with the step and the time left
NetworkEvaluated  when sizes are chosen by a metric: after each evaluation
EpochFinished     in training: before the first epoch and after each one, with the losses
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from roundwise.report import LayerReport
from roundwise.report_compression import CompressionReport
from roundwise.report_training import EpochReport
from roundwise.wording import human_bytes, human_seconds, number_of


@final
@dataclass(frozen=True)
class Plan:
    """The layers of a run, and an estimate of its memory and time before it starts.

    Attributes:
        layers: names of the layers that will be quantized, in order.
        samples: number of calibration samples.
        widest_bytes: the largest number of bytes of activations held between two layers, both streams, all samples.
        widest_layer: the layer after which `widest_bytes` are held, or "the input".
        working_bytes: further memory, for one batch while it runs from one layer to the next, or for the statistics and
            the solver of one layer.
        memory_budget: bytes of activations that may stay in memory.
        seconds: estimated from one batch and the cost that each solver states; it may be wrong by a factor of three.
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
        """The largest number of bytes in temporary files at any time."""
        return max(0, self.widest_bytes - self.memory_budget)

    def __str__(self) -> str:
        where, at = "all in memory", self.widest_layer
        if at in self.layers:
            at = f"layer '{at}'"
        if self.spilled_bytes:
            where = f"{human_bytes(self.spilled_bytes)} of it in temporary files"
        return (
            f"plan: {number_of(len(self.layers), 'layer')}, {number_of(self.samples, 'sample')}; "
            f"at most {human_bytes(self.widest_bytes)} of activations (at {at}; {where}) "
            f"and {human_bytes(self.working_bytes)} of working memory; about {human_seconds(self.seconds)}"
        )


@final
@dataclass(frozen=True)
class Planned:
    """The first pass is about to start."""

    plan: Plan

    def __str__(self) -> str:
        return str(self.plan)


@final
@dataclass(frozen=True)
class PassStarted:
    """Another pass over all samples starts; `purpose` says why it is needed."""

    purpose: str

    def __str__(self) -> str:
        return f"{self.purpose} …"


@final
@dataclass(frozen=True)
class LayerStarted:
    """Layer number `index` (from 0) of `total` is quantized, measured or cut next."""

    name: str
    index: int
    total: int

    def __str__(self) -> str:
        return f"[{self.index + 1}/{self.total}] layer '{self.name}' …"


@final
@dataclass(frozen=True)
class LayerFinished:
    """A layer is quantized or cut; `seconds_left` is estimated from the time of the layers so far."""

    report: LayerReport | CompressionReport
    index: int
    total: int
    seconds_left: float

    def __str__(self) -> str:
        layer = self.report
        left = human_seconds(self.seconds_left)
        return f"[{self.index + 1}/{self.total}] layer '{layer.name}': {layer.outcome}; {left} left"


@final
@dataclass(frozen=True)
class StepsFinished:
    """Step number `step` (from 1) of `steps` in an epoch of training is over.

    Attributes:
        epoch, epochs: the number of the epoch, from 1, and of all epochs.
        step, steps: of this epoch.
        loss: of this step.
        seconds_left: of the whole training, estimated from the steps so far.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"[{self.epoch}/{self.epochs}] step {self.step:,} of {self.steps:,}, loss {self.loss:.4f}; "
            f"{human_seconds(self.seconds_left)} left"
        )


@final
@dataclass(frozen=True)
class NetworkEvaluated:
    """The user's metric is measured for a network in which one layer alone is cut; `Compress` asks for it.

    Attributes:
        name: of the layer.
        size: what the layer became, in words.
        score: the metric.
        index, total: number of this evaluation, from 0, and of all.
        seconds_left: estimated from the evaluations so far.
    """

    name: str
    size: str
    score: float
    index: int
    total: int
    seconds_left: float

    def __str__(self) -> str:
        return (
            f"[{self.index + 1}/{self.total}] layer '{self.name}' alone, {self.size}: metric {self.score:.4g}; "
            f"{human_seconds(self.seconds_left)} left"
        )


@final
@dataclass(frozen=True)
class EpochFinished:
    """An epoch of training is over; `seconds_left` is estimated from the epochs so far."""

    report: EpochReport
    total: int
    seconds_left: float

    def __str__(self) -> str:
        epoch = self.report
        accuracy = "" if epoch.accuracy is None else f", accuracy {epoch.accuracy:.1%}"
        if epoch.loss is None:
            return f"before training: held-out loss {epoch.held_out:.4f}{accuracy}"
        return (
            f"[{epoch.epoch}/{self.total}] loss {epoch.loss:.4f}, held-out {epoch.held_out:.4f}{accuracy}; "
            f"{human_seconds(self.seconds_left)} left"
        )


Event = Planned | PassStarted | LayerStarted | LayerFinished | NetworkEvaluated | StepsFinished | EpochFinished
Progress = Callable[[Event], None]
