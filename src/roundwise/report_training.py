"""What the report says about training: one entry per epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.wording import number_of


@final
@dataclass(frozen=True)
class EpochReport:
    """One epoch of training.

    Attributes:
        epoch: its number, from 1; 0 is before training.
        loss: mean over the training batches; None before training.
        held_out: mean loss on held-out samples, after the epoch.
        accuracy: share of the held-out samples whose label has the largest logit, 0 to 1; None without labels.
        oscillating: share of the quantized weights whose codes jump to and fro, 0 to 1; None before training.
    """

    epoch: int
    loss: float | None
    held_out: float
    accuracy: float | None = None
    oscillating: float | None = None


def best_epoch(epochs: Sequence[EpochReport]) -> EpochReport | None:
    """The epoch whose network was kept: that with the smallest held-out loss; None without training."""
    return min(epochs, key=lambda epoch: epoch.held_out, default=None)


def training_in_words(epochs: Sequence[EpochReport]) -> str:
    """What training has reached, as a line of the report."""
    first, last, best = epochs[0], epochs[-1], best_epoch(epochs)
    assert best is not None
    count = number_of(last.epoch, "epoch")
    if best.epoch == 0:
        return f"training: {count}; none lowered the held-out loss of {first.held_out:.4g}, so none was kept."
    parts = [f"held-out loss {first.held_out:.4g} → {best.held_out:.4g}"]
    if first.accuracy is not None and best.accuracy is not None:
        parts.append(f"accuracy {first.accuracy:.2%} → {best.accuracy:.2%}")
    if best.oscillating is not None:
        parts.append(f"{best.oscillating:.2%} of the quantized weights oscillate")
    return f"training: {count}, of which number {best.epoch} was kept; {', '.join(parts)}."
