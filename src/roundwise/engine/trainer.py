"""The training loop: a small one on plain PyTorch.

    for each epoch
        for each batch: loss → gradients → step of the optimizer → step of the schedule
        estimate batch-norm's statistics anew, measure the loss on held-out samples
        keep the state if it is the best so far
    load the best state; that before training counts too, so training never makes the network worse

The loss compares with the float network's outputs (`engine/distillation.py`), which are computed batch by batch.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from roundwise.engine.distillation import Loss
from roundwise.engine.norm_statistics import reestimate
from roundwise.engine.trainable import Trainable
from roundwise.engine.training_data import TrainingBatch, TrainingData
from roundwise.errors import CalibrationError, ModelError
from roundwise.events import EpochFinished, Progress
from roundwise.recipe.finetune import KINDS, Finetune
from roundwise.report import EpochReport


@final
@dataclass
class State:
    """The best state so far.

    Attributes:
        loss: on held-out samples.
        epoch: after which it was reached; 0 is before training.
        tensors: the state dict.
    """

    loss: float
    epoch: int
    tensors: dict[str, Tensor]


@final
class Trainer:
    """Trains one network on one set of samples.

    Args:
        trainable: the network; is changed.
        teacher: the float network, or None where labels alone count.
        data: what is trained on and what is held out.
        settings: of the stage.
        seed: of all random choices, with the epoch.
        device: where the network is.
        progress: called after each epoch.
    """

    def __init__(
        self,
        trainable: Trainable,
        teacher: Callable[..., Any] | None,
        data: TrainingData,
        settings: Finetune,
        seed: int,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.trainable, self.teacher, self.data, self.settings = trainable, teacher, data, settings
        self.seed, self.device, self.progress = seed, device, progress
        self.loss = Loss(settings.labels, settings.loss)
        self.epochs: list[EpochReport] = []

    def run(self) -> State:
        """Train, and load the best state into the network.

        Raises:
            CalibrationError: the samples do not fit the network, or an epoch has no batch.
            ModelError: the loss is not finite, or nothing can be trained.
        """
        settings = self.settings
        optimizer = self._optimizer()
        total = settings.epochs * (self.data.batches or sum(1 for _ in self.data.train_batches(0)))
        if total == 0:
            raise CalibrationError("there is no batch to train on. Give more samples, or smaller batches.")
        step, start = 0, time.perf_counter()
        best = self._evaluated(0, math.nan, None, 0.0)
        for epoch in range(1, settings.epochs + 1):
            torch.manual_seed(self.seed * 1_000_003 + epoch)
            self.trainable.train()
            losses: list[float] = []
            for batch in self.data.train_batches(epoch - 1):
                self._set_rates(optimizer, step / total)
                losses.append(self._step(optimizer, batch.to(self.device), epoch))
                step += 1
            if not losses:
                raise CalibrationError(
                    f"epoch {epoch} has no batch: the data gave batches the first time and none now. Give data that "
                    "can be read again and again, such as a list or a DataLoader."
                )
            elapsed = time.perf_counter() - start
            left = elapsed / epoch * (settings.epochs - epoch)
            best = self._evaluated(epoch, sum(losses) / len(losses), best, left)
        self.trainable.load_state_dict(best.tensors)
        self.trainable.eval()
        return best

    def _step(self, optimizer: torch.optim.Optimizer, batch: TrainingBatch, epoch: int) -> float:
        optimizer.zero_grad(set_to_none=True)
        outputs = self.trainable(*batch.args, **batch.kwargs)
        loss = self.loss(outputs, self._targets(batch), batch.labels).total
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(
                f"the loss is {value} in epoch {epoch}, so training cannot go on. Use a smaller learning rate "
                f"(now {self.settings.learning_rate:g}), or check the samples."
            )
        loss.backward()
        optimizer.step()
        return value

    @torch.no_grad()
    def _targets(self, batch: TrainingBatch) -> Any:
        return None if self.teacher is None else self.teacher(*batch.args, **batch.kwargs)

    def _evaluated(self, epoch: int, loss: float, best: State | None, seconds_left: float) -> State:
        """Measure the network on held-out samples; the better of its state and the best so far."""
        if epoch > 0 and self.settings.batch_norm_batches:
            reestimate(self.trainable, self._batch_norm_runs())
        held_out, accuracy = self._measure()
        state = best
        if best is None or held_out < best.loss:
            tensors = {name: value.detach().clone() for name, value in self.trainable.state_dict().items()}
            state = State(held_out, epoch, tensors)
        report = EpochReport(epoch, None if math.isnan(loss) else loss, held_out, accuracy)
        self.epochs.append(report)
        self.progress(EpochFinished(report, self.settings.epochs, seconds_left))
        assert state is not None
        return state

    def _batch_norm_runs(self) -> Iterator[Callable[[], object]]:
        batches = itertools.islice(self.data.train_batches(0), self.settings.batch_norm_batches)

        def run(batch: TrainingBatch) -> Callable[[], object]:
            return lambda: self.trainable(*batch.args, **batch.kwargs)

        return (run(batch.to(self.device)) for batch in batches)

    @torch.no_grad()
    def _measure(self) -> tuple[float, float | None]:
        """The mean loss and, with labels, the accuracy on held-out samples."""
        self.trainable.eval()
        total, samples, correct, labelled = 0.0, 0, 0, 0
        for batch in self.data.held_out_batches():
            batch = batch.to(self.device)
            losses = self.loss(self.trainable(*batch.args, **batch.kwargs), self._targets(batch), batch.labels)
            total += float(losses.total) * batch.samples
            samples += batch.samples
            if losses.correct is not None:
                correct, labelled = correct + losses.correct, labelled + batch.samples
        return total / max(1, samples), correct / labelled if labelled else None

    def _optimizer(self) -> torch.optim.Optimizer:
        chosen, settings = set(self.settings.only or KINDS), self.settings
        for kind, parameters in self.trainable.parameters_by_kind().items():
            for parameter in parameters:
                parameter.requires_grad_(kind in chosen)
        groups = self.trainable.parameter_groups(
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            scales_lr=settings.learning_rate * settings.scales_rate,
        )
        if not groups:
            raise ModelError(
                f"there is nothing to train: the network has no parameter of the kinds {', '.join(sorted(chosen))} "
                "that asks for gradients. Set requires_grad on its parameters, or choose other kinds with `only`."
            )
        for group in groups:
            group["initial_lr"] = group["lr"]
        if settings.optimizer == "sgd":
            return torch.optim.SGD(groups, momentum=0.9)
        return torch.optim.Adam(groups)

    @staticmethod
    def _set_rates(optimizer: torch.optim.Optimizer, done: float) -> None:
        """The learning rates fall along half a cosine, from the first step to 0 at the last."""
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * 0.5 * (1 + math.cos(math.pi * done))
