"""Run the stage `Finetune`: make the network trainable, train it, and hand on the best state as a network again."""

from __future__ import annotations

import dataclasses
import time

import torch

from roundwise.engine.checkpoint import Checkpoint, fingerprint
from roundwise.engine.network import Network
from roundwise.engine.run import Run
from roundwise.engine.trainable import Trainable
from roundwise.engine.trainer import Trainer
from roundwise.engine.training_data import training_data
from roundwise.errors import RecipeError
from roundwise.recipe.finetune import Finetune
from roundwise.report import StageReport


def run_finetune(stage: Finetune, network: Network, run: Run) -> Network:
    """Train a network.

    Raises:
        CalibrationError: the samples do not fit the network.
        ModelError: the loss is not finite, or nothing can be trained.
        RecipeError: there are no samples.
    """
    if not run.has_data:
        raise RecipeError("Finetune needs samples to train on, and there are none. Give samples, or leave it out.")
    start = time.perf_counter()
    data = training_data(run.training_samples, network.facts.signature, stage.batch_size, run.seed)
    trainable = Trainable(network, stage.quantization).to(run.device)
    teacher = None if stage.labels == 1 else (network.original or network.graph).module()
    checkpoint = None
    if run.journal is not None:
        identity = fingerprint(dataclasses.asdict(stage) | {"seed": run.seed}, trainable.state_dict(), data.samples)
        checkpoint = Checkpoint(run.journal, identity)
    with torch.random.fork_rng(), torch.enable_grad():
        trainer = Trainer(trainable, teacher, data, stage, run.seed, run.device, run.progress, checkpoint)
        trainer.run()
    notes = [f"training: {note}" for note in network.graph.training.notes]
    if data.note:
        notes.append(data.note)
    if trainer.best_epoch == 0:
        notes.append("training did not lower the loss on held-out samples, so the network is as it was before")
    trained = trainable.to_network()
    notes += [note for stage in trained.reports[len(network.reports) :] for note in stage.notes]
    report = StageReport(
        "finetune", {"training": time.perf_counter() - start}, tuple(notes), epochs=tuple(trainer.epochs)
    )
    return dataclasses.replace(trained, reports=(*network.reports, report))
