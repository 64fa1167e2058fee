"""One run of a recipe: its samples, its memory, its seed, and who wants to know how it goes."""

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
    """What the stages of a recipe share.

    Attributes:
        calibration: the samples; made-up inputs where there is no data; None once the last stage has taken them.
        measures: whether the samples are data, so that methods may learn from them and errors be measured on them.
        samples: how many there are; 0 without data.
        store: where activations wait.
        seed: of every random choice.
        progress: told how the run goes.
        last: whether the stage that runs now is the last one, which need not keep the samples for others.
    """

    calibration: Calibration | None
    measures: bool
    samples: int
    store: ActivationStore
    seed: int
    progress: Progress
    last: bool = False

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.store.device

    def example(self, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` of the first samples, on the network's device."""
        assert self.calibration is not None
        return self.calibration.example(count, self.device)

    def take_batches(self) -> list[list[Any]]:
        """The batches, for passes over all samples; after the last stage has them, nobody else holds them."""
        assert self.calibration is not None
        batches = list(self.calibration.batches)
        if self.last:
            self.calibration = None
        return batches
