"""Weights that jump to and fro between two codes while they are trained: how many, and what can be done about them.

A weight near the middle between two codes is pushed across it by one step and back by the next, for as long as training
lasts. Its codes never settle, and batch-norm's statistics fit none of them. Per weight and step,

    o = 1 if the code changes, against the direction of its last change; else 0
    f ← m f + (1 − m) o                                              the frequency of its oscillation            (1)

    dampening   adds λ Σ (ŵ − clip(w, s·qmin, s·qmax))² to the loss: weights are pulled to their codes           (2)
    freezing    where f exceeds a threshold, the weight stays at the code that it had most of the time           (3)

Reference:
    Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022, arXiv:2203.11086 (Eqs. 4 to 8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from roundwise.engine.trainable import Trainable

MOMENTUM = 0.999
"""m in equation 1: the frequency is an average over about 1,000 steps. A larger value reacts later."""

OSCILLATES = 0.005
"""A weight counts as oscillating if more than 0.5 % of its steps change its code against the last change."""


@final
@dataclass(eq=False)
class _History:
    """What is remembered of the weights of one layer, as matrices.

    Attributes:
        codes: after the last step.
        direction: of each code's last change: −1, 0 or 1.
        frequency: f of equation 1.
        mean: running mean of the codes.
        frozen: the code where a weight is frozen, else NaN.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    mean: Tensor
    frozen: Tensor


@final
class Oscillations:
    """Follows the codes of all quantized weights from step to step.

    Args:
        trainable: the network.
        threshold: weights that oscillate more often are frozen; None freezes none.
    """

    def __init__(self, trainable: Trainable, threshold: float | None) -> None:
        self._trainable, self._threshold = trainable, threshold
        self._layers: list[_History] = []
        for codes in self._codes():
            zeros = torch.zeros(codes.shape, device=codes.device)
            self._layers.append(_History(codes, zeros, zeros.clone(), codes.float(), torch.full_like(zeros, torch.nan)))

    @torch.no_grad()
    def step(self) -> None:
        """Take note of the codes after a step of the optimizer, and keep frozen weights where they are."""
        for history, codes, layer in zip(self._layers, self._codes(), self._trainable.quantized_weights(), strict=True):
            change = (codes - history.codes).sign().float()
            moved = change != 0
            back = moved & (change == -history.direction)
            history.frequency.mul_(MOMENTUM).add_(back, alpha=1 - MOMENTUM)
            history.mean.mul_(MOMENTUM).add_(codes, alpha=1 - MOMENTUM)
            history.direction = torch.where(moved, change, history.direction)
            history.codes = codes
            if self._threshold is not None:
                new = (history.frequency > self._threshold) & history.frozen.isnan()
                history.frozen = torch.where(new, history.mean.round(), history.frozen)
                layer.hold(history.frozen)
                history.codes = torch.where(history.frozen.isnan(), codes, history.frozen).to(codes.dtype)

    @property
    def share(self) -> float:
        """The share of the quantized weights that oscillate, 0 to 1."""
        weights = sum(history.codes.numel() for history in self._layers)
        return sum(int((h.frequency > OSCILLATES).sum()) for h in self._layers) / max(1, weights)

    @property
    def frozen(self) -> float:
        """The share of the quantized weights that are frozen, 0 to 1."""
        weights = sum(history.codes.numel() for history in self._layers)
        return sum(int((~h.frozen.isnan()).sum()) for h in self._layers) / max(1, weights)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that is remembered, for a checkpoint."""
        return {f"{i}.{name}": value for i, history in enumerate(self._layers) for name, value in vars(history).items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        for i, history in enumerate(self._layers):
            for name in vars(history):
                setattr(history, name, state[f"{i}.{name}"])

    def _codes(self) -> list[Tensor]:
        with torch.no_grad():
            return [layer.codes() for layer in self._trainable.quantized_weights()]


def dampening(trainable: Trainable) -> Tensor:
    """The sum of equation 2 over all layers: per output channel summed, and the mean over the rest, without λ."""
    parts = []
    for layer in trainable.quantized_weights():
        matrix, grid = layer.matrix(), layer.quantizer.grid
        cols = matrix.shape[-1]
        with torch.no_grad():
            target, scales = grid.fake_quantize(matrix), grid.scales(cols)
            low, high = grid.codebook.qmin * scales, grid.codebook.qmax * scales
        clipped = torch.minimum(torch.maximum(matrix, low), high)
        parts.append((target - clipped).square().mean(-1).sum())
    return torch.stack(parts).sum() if parts else torch.zeros(())
