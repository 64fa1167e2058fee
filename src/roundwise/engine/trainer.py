"""The training loop: a small one on plain PyTorch.

    for each epoch
        for each batch: loss → gradients → step of the optimizer, at a learning rate that falls along a cosine
        estimate batch-norm's statistics anew, measure the loss on held-out samples
        keep the state if it is the best so far
    load the best state; that before training counts too, so training never makes the network worse

The loss compares with the float network's outputs (`engine/distillation.py`), which are computed batch by batch. With a
checkpoint, a run that was killed goes on at the step of the last checkpoint, and ends with the same bits.

Several processes (`engine/processes.py`) share the work: each has its part of every batch, and gradients are summed.
The first one writes the checkpoint, at the end of an epoch.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any, final

import torch
from torch import Tensor

from roundwise.engine.averaging import Average
from roundwise.engine.checkpoint import Checkpoint
from roundwise.engine.distillation import Loss
from roundwise.engine.features import Watched, WatchedNetwork
from roundwise.engine.norm_statistics import reestimate
from roundwise.engine.oscillations import Oscillations, dampening
from roundwise.engine.processes import Processes
from roundwise.engine.trainable import Trainable
from roundwise.engine.training_data import TrainingBatch, TrainingData
from roundwise.errors import CalibrationError, ModelError, RecipeError
from roundwise.events import EpochFinished, Progress, StepsFinished
from roundwise.recipe.finetune import KINDS, Finetune
from roundwise.report_training import EpochReport

BETWEEN_CHECKPOINTS = 30.0
"""Seconds between two checkpoints. A longer time loses more of a run that is killed; a shorter one writes more."""

BETWEEN_EVENTS = 5.0
"""Seconds between two events about steps. A shorter time tells more than anyone reads."""


@final
class Trainer:
    """Trains one network on one set of samples.

    Args:
        trainable: the network; is changed.
        teacher: the float network, with the features that are compared; None where labels alone count.
        features: the operations that give these features.
        data: what is trained on and what is held out.
        settings: of the stage.
        seed: of all random choices, with the epoch.
        device: where the network is.
        progress: called after each epoch, and every few seconds.
        checkpoint: where the state is kept; None keeps it nowhere.
        augmentation: changes the inputs of each training batch; or None.
        processes: that train together.

    Raises:
        ModelError: nothing can be trained.
        RecipeError: the device cannot compute in the chosen precision.
    """

    def __init__(
        self,
        trainable: Trainable,
        teacher: WatchedNetwork | None,
        data: TrainingData,
        settings: Finetune,
        features: Sequence[str],
        seed: int,
        device: torch.device,
        progress: Progress,
        checkpoint: Checkpoint | None = None,
        augmentation: Callable[[Any], Any] | None = None,
        processes: Processes = Processes(),
    ) -> None:
        self.trainable, self.teacher, self.data, self.settings = trainable, teacher, data, settings
        self.seed, self.device, self.checkpoint = seed, device, checkpoint
        self.progress: Progress = progress if processes.first else lambda _: None
        self.augmentation, self.processes = augmentation, processes
        self.loss = Loss(settings.labels, settings.loss, processes)
        self.held_out_loss = Loss(settings.labels, settings.loss)  # of batches that one process has alone
        if settings.only is not None and "weights" not in settings.only:
            trainable.hold_codes()
        self.optimizer = self._make_optimizer()
        self.oscillations = Oscillations(trainable, settings.freezing)
        self.average = Average(trainable, settings.weight_average)
        self.epochs: list[EpochReport] = []
        self._best: dict[str, Tensor] = {}
        self._losses: list[float] = []  # of the epoch so far
        self._step = 0
        self._saved = time.monotonic()
        trainable.recompute(settings.recompute)
        self._watched = trainable.watched(features) if features else None
        self._check_precision()

    @property
    def best_epoch(self) -> int:
        """The epoch with the smallest held-out loss; 0 is before training."""
        return min(self.epochs, key=lambda epoch: epoch.held_out).epoch

    def run(self) -> None:
        """Train, and load the best state into the network.

        Raises:
            CalibrationError: the samples do not fit the network, labels are missing, or an epoch has no batch.
            FileFormatError, RecipeError: the checkpoint cannot be used.
            ModelError: the loss is not finite.
        """
        self._check_labels()
        batches = self.data.batches or sum(1 for _ in self.data.train_batches(0))
        total = self.settings.epochs * batches
        self.processes.share(self.trainable.state_dict().values())
        if not self._resume():
            self._finish_epoch(0, math.nan, 0.0)
        clock = _Clock(total, self._step)
        for epoch in range(len(self.epochs), self.settings.epochs + 1):
            done = len(self._losses)
            if done == 0:
                torch.manual_seed((self.seed * 1_000_003 + epoch) * self.processes.count + self.processes.rank)
            self._to_training_mode()
            for batch in self.data.train_batches(epoch - 1, done):
                self._train_on(batch.to(self.device), epoch, self._step / max(1, total))
                self._step += 1
                if clock.strikes():
                    step, loss, left = len(self._losses), self._losses[-1], clock.seconds_left(self._step)
                    self.progress(StepsFinished(epoch, self.settings.epochs, step, batches, loss, left))
                late = time.monotonic() - self._saved > BETWEEN_CHECKPOINTS
                if late and self.data.resumable and self.processes.count == 1:
                    self._save()
            if not self._losses:
                raise CalibrationError(
                    f"epoch {epoch} has no batch to train on. Give more samples, and data that can be read again and "
                    "again, such as a list or a DataLoader."
                )
            mean = sum(self._losses) / len(self._losses)
            self._losses = []
            self._finish_epoch(epoch, mean, clock.seconds_left(self._step))
        self.trainable.load_state_dict(self._best)
        self.trainable.eval()

    def _to_training_mode(self) -> None:
        self.trainable.train()
        if self.settings.keeps_statistics:
            for norm in self.trainable.batch_norms:
                norm.eval()

    def _check_labels(self) -> None:
        """Raise if labels are asked for, and the samples have none."""
        share = self.settings.labels
        if share > 0 and any(batch.labels is None for batch in self.data.held_out_batches()):
            raise CalibrationError(
                f"Finetune(labels={share:g}) learns from labels, and the samples have none. Give pairs of inputs and "
                "labels, such as (images, labels) or a DataLoader of both; or leave out `labels` to learn from the "
                "float network."
            )

    # --------------------------------------------------------------------------------------------------- one step

    def _train_on(self, batch: TrainingBatch, epoch: int, done: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * 0.5 * (1 + math.cos(math.pi * done))
        self.optimizer.zero_grad(set_to_none=True)
        batch = batch.changed(self.augmentation)
        with self._autocast():
            outputs, features = self._outputs(batch)
        targets, features_of_teacher = self._targets(batch)
        loss = self.loss(outputs, targets, batch.labels).total
        if features:
            loss = loss + self.settings.features_weight * self.loss.of_features(features, features_of_teacher)
        if self.settings.dampening:
            # From a quarter of the time on, λ rises along a cosine: pulled too early, weights could not move at all.
            share = min(1.0, max(0.0, (done - 0.25) / 0.75))
            strength = self.settings.dampening * 0.5 * (1 - math.cos(math.pi * share)) / self.processes.count
            loss = loss + strength * dampening(self.trainable)
        loss.backward()
        summed = loss.detach().clone()
        self.processes.sum([summed, *self._gradients()])
        value = float(summed)
        if not math.isfinite(value):
            raise ModelError(
                f"the loss is {value} in epoch {epoch}, so training cannot go on. Use a smaller learning rate "
                f"(now {self.settings.learning_rate:g}), or check the samples and labels."
            )
        self.optimizer.step()
        self.oscillations.step()
        self.average.step()
        self._losses.append(value)

    def _outputs(self, batch: TrainingBatch) -> Watched:
        """The outputs of the network in training, and its features if they are compared."""
        if self._watched is not None:
            return self._watched(*batch.args, **batch.kwargs)
        return Watched(self.trainable(*batch.args, **batch.kwargs), [])

    def _gradients(self) -> list[Tensor]:
        """The gradients of all parameters that are trained; a process that has none for one of them gives 0."""
        if self.processes.count > 1:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is None:
                        parameter.grad = torch.zeros_like(parameter)
        groups = (group["params"] for group in self.optimizer.param_groups)
        return [one.grad for parameters in groups for one in parameters if one.grad is not None]

    def _autocast(self) -> AbstractContextManager[Any]:
        """In training only: what is evaluated is what will run."""
        if self.settings.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _check_precision(self) -> None:
        """Raise where the device cannot compute in bfloat16."""
        kind = self.device.type
        if self.settings.precision == "bfloat16" and (
            not torch.amp.is_autocast_available(kind) or (kind == "cuda" and not torch.cuda.is_bf16_supported())
        ):
            raise RecipeError(
                f"precision='bfloat16': the device '{self.device}' does not compute in it. Leave the setting out, or "
                "train on another device."
            )

    @torch.no_grad()
    def _targets(self, batch: TrainingBatch) -> Watched:
        return Watched(None, []) if self.teacher is None else self.teacher(*batch.args, **batch.kwargs)

    # -------------------------------------------------------------------------------------------------- one epoch

    def _finish_epoch(self, epoch: int, loss: float, seconds_left: float) -> None:
        """Measure the network on held-out samples, and keep its state if it is the best so far."""
        with self.average.in_place() if epoch > 0 else contextlib.nullcontext():
            if epoch > 0 and self.settings.batch_norm_batches and not self.settings.keeps_statistics:
                reestimate(self.trainable, self._batch_norm_runs())
                self._share_statistics()
            held_out, accuracy = self._measure()
            if not self.epochs or held_out < min(one.held_out for one in self.epochs):
                self._best = {name: value.detach().clone() for name, value in self.trainable.state_dict().items()}
        report = EpochReport(
            epoch, None if epoch == 0 else loss, held_out, accuracy, self.oscillations.share if epoch else None
        )
        self.epochs.append(report)
        self._save()
        self.progress(EpochFinished(report, self.settings.epochs, seconds_left))

    def _share_statistics(self) -> None:
        """Give each process the mean of what all have estimated."""
        norms = [norm for norm in self.trainable.batch_norms if norm.track_running_stats]
        statistics = [norm.get_buffer(name) for norm in norms for name in ("running_mean", "running_var")]
        self.processes.sum(statistics)
        for one in statistics if self.processes.count > 1 else ():
            one.div_(self.processes.count)

    def _batch_norm_runs(self) -> Iterator[Callable[[], object]]:
        """Runs on batches as training sees them: statistics without augmentation do not fit the trained network."""
        batches = itertools.islice(self.data.train_batches(0), self.settings.batch_norm_batches)

        def run(batch: TrainingBatch) -> Callable[[], object]:
            return lambda: self.trainable(*batch.args, **batch.kwargs)

        return (run(batch.to(self.device).changed(self.augmentation)) for batch in batches)

    @torch.no_grad()
    def _measure(self) -> tuple[float, float | None]:
        """The mean loss and, with labels, the accuracy on held-out samples."""
        self.trainable.eval()
        total, samples, correct, labelled = 0.0, 0, 0, 0
        for cpu_batch in self.data.held_out_batches():
            batch = cpu_batch.to(self.device)
            outputs = self.trainable(*batch.args, **batch.kwargs)
            losses = self.held_out_loss(outputs, self._targets(batch).outputs, batch.labels)
            total += float(losses.total) * batch.samples
            samples += batch.samples
            if losses.correct is not None:
                correct, labelled = correct + losses.correct, labelled + batch.samples
        sums = torch.tensor([total, samples, correct, labelled], dtype=torch.float64, device=self.device)
        self.processes.sum([sums])
        total, samples, correct, labelled = sums.tolist()
        return total / max(1, samples), correct / labelled if labelled else None

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _save(self) -> None:
        if self.checkpoint is None or not self.processes.first:
            return
        self.checkpoint.save(
            {
                "module": self.trainable.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "oscillations": self.oscillations.state_dict(),
                "average": self.average.state_dict(),
                "best": self._best,
                "epochs": [asdict(epoch) for epoch in self.epochs],
                "losses": self._losses,
                "step": self._step,
                "random": torch.get_rng_state(),
                "device_random": self._device_random(),
            }
        )
        self._saved = time.monotonic()

    def _resume(self) -> bool:
        """Go on from the checkpoint; False if there is none."""
        state = None if self.checkpoint is None else self.checkpoint.load()
        if state is None:
            return False
        self.trainable.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.oscillations.load_state_dict(state["oscillations"])
        self.average.load_state_dict(state["average"])
        self._best, self._losses, self._step = state["best"], state["losses"], state["step"]
        self.epochs = [EpochReport(**epoch) for epoch in state["epochs"]]
        torch.set_rng_state(state["random"])
        if state["device_random"] is not None:
            torch.get_device_module(self.device).set_rng_state(state["device_random"], self.device)
        return True

    def _device_random(self) -> Tensor | None:
        """The state of the random numbers of a GPU, on which dropout hangs there; None on a CPU."""
        if self.device.type == "cpu":
            return None
        state: Tensor = torch.get_device_module(self.device).get_rng_state(self.device)
        return state

    def _make_optimizer(self) -> torch.optim.Optimizer:
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


@final
class _Clock:
    """Estimates the time left from the steps since it was made."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._first = total, done
        self._start = self._struck = time.monotonic()

    def strikes(self) -> bool:
        """Whether it is time for another event."""
        now = time.monotonic()
        if now - self._struck < BETWEEN_EVENTS:
            return False
        self._struck = now
        return True

    def seconds_left(self, step: int) -> float:
        """How long the steps after this one will take."""
        return (time.monotonic() - self._start) / max(1, step - self._first) * max(0, self._total - step)
