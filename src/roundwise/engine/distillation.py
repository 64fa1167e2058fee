"""What training lowers: the difference from the float network's outputs, and the cross-entropy of labels.

    logits   KL(softmax(t) ‖ softmax(y))                 t: outputs of the float network, y: of the network in training
    others   Σ (y − t)² / Σ (t − mean t)²                relative, so that outputs of any size weigh the same

Tensors inside the network (`engine/features.py`) are compared as `others` are.

Distillation needs no labels. It gives every sample a target for each class, and so teaches more than a label does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from roundwise.engine.processes import Processes
from roundwise.errors import CalibrationError


class Losses(NamedTuple):
    """The loss of a batch, and its parts.

    Attributes:
        total: what training lowers; with gradient.
        correct: samples whose largest logit is that of the label; None without labels.
    """

    total: Tensor
    correct: int | None


@final
class Loss:
    """The loss of a batch.

    Args:
        labels_weight: 0 to 1: the share of the cross-entropy of labels; the rest is distillation. Without labels it
            does not count.
        kind: "kl" takes outputs as logits, along dimension 1; "mse" takes them as numbers; "auto" takes a
            floating-point output as logits if it has two or more dimensions and two or more channels.
        processes: that have the other parts of the batch. The loss is then this part's summand of the whole batch's.
    """

    def __init__(self, labels_weight: float = 0.0, kind: str = "auto", processes: Processes = Processes()) -> None:
        self.labels_weight, self.kind, self._processes = labels_weight, kind, processes

    @property
    def needs_teacher(self) -> bool:
        """Whether the outputs of the float network are needed."""
        return self.labels_weight < 1

    def __call__(self, outputs: Any, targets: Any, labels: Tensor | None) -> Losses:
        """The loss of a batch.

        Args:
            outputs: of the network in training, nested in any way.
            targets: of the float network, nested in the same way; None if labels alone count.
            labels: class numbers, int64 `[samples]`; or None.

        Raises:
            CalibrationError: labels do not fit the outputs.
        """
        found = _floats(outputs)
        loss = torch.zeros((), device=found[0].device)
        part = self._part_of_batch(found[0])
        weight = self.labels_weight if labels is not None else 0.0
        if targets is not None and weight < 1:
            parts = [self._difference(y, t, part) for y, t in zip(found, _floats(targets), strict=True)]
            loss = loss + (1 - weight) * torch.stack(parts).mean()
        if labels is None:
            return Losses(loss, None)
        scores = next((y for y in found if y.dim() >= 2), None)
        if scores is None or scores.shape[0] != labels.shape[0] or int(labels.max()) >= scores.shape[1]:
            shapes = ", ".join(str(list(y.shape)) for y in found)
            raise CalibrationError(
                f"the labels are {labels.dtype} {list(labels.shape)} with numbers up to {int(labels.max())}, and the "
                f"network's outputs are {shapes}: no output has a logit for each class of each sample. Give labels "
                "from 0 to the number of classes − 1, or data without labels."
            )
        if weight > 0:
            loss = loss + weight * part * F.cross_entropy(scores.float(), labels)
        return Losses(loss, int((scores.argmax(1) == labels).sum()))

    def of_features(self, features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The mean relative difference of tensors inside the network from the float network's."""
        parts = [
            self._relative(y.float(), t.float(), self._part_of_batch(y)) for y, t in zip(features, targets, strict=True)
        ]
        return torch.stack(parts).mean()

    def _part_of_batch(self, output: Tensor) -> float:
        """The share of the batch's samples that this process has."""
        samples = len(output) if output.dim() else 1
        return samples / self._processes.total(samples, output.device)

    def _difference(self, y: Tensor, t: Tensor, part: float) -> Tensor:
        y, t = y.float(), t.float()
        if self.kind == "kl" or (self.kind == "auto" and y.dim() >= 2 and y.shape[1] > 1):
            log_y, log_t = F.log_softmax(y, 1), F.log_softmax(t, 1)
            return part * F.kl_div(log_y, log_t, reduction="sum", log_target=True) / (y.numel() / y.shape[1])
        return self._relative(y, t, part)

    def _relative(self, y: Tensor, t: Tensor, part: float) -> Tensor:
        mean = part * t.mean()
        self._processes.sum([mean])
        spread = (t - mean).square().sum()
        self._processes.sum([spread])
        return (y - t).square().sum() / spread.clamp(min=torch.finfo(torch.float32).tiny)


def _floats(outputs: Any) -> Sequence[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves:
        raise CalibrationError(
            "the network has no floating-point output, so there is nothing to learn from. Train the part of the model "
            "that gives logits or features."
        )
    return leaves
