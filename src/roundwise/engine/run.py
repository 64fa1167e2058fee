"""The state that all stages of one run share: samples, memory, seed and the callback for progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch

from roundwise.engine.calibration import Calibration
from roundwise.engine.store import ActivationStore
from roundwise.events import Progress


@final
@dataclass(eq=False)
class Run:
    """The state that all stages of one run share.

    Attributes:
        calibration: the samples, or random inputs if there is no data; None after the last stage has taken them.
        has_data: whether the samples are data: methods may learn from them, and errors are measured on them.
        samples: number of calibration samples; 0 without data.
        store: holds activations between layers.
        seed: seed of all random choices.
        progress: called with an event for each step of the run.
        last: whether the current stage is the last one, so that the samples need not be kept after it.
    """

    calibration: Calibration | None
    has_data: bool
    samples: int
    store: ActivationStore
    seed: int
    progress: Progress
    last: bool = False

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return self.store.device

    def example(self, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` with the first `count` samples, on the network's device."""
        assert self.calibration is not None
        return self.calibration.example(count, self.device)

    def take_batches(self) -> list[list[Any]]:
        """All batches. The last stage gets the only references to them, so that it can free each batch after use."""
        assert self.calibration is not None
        batches = list(self.calibration.batches)
        if self.last:
            self.calibration = None
        return batches
