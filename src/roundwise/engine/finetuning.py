"""Run the stage `Finetune`: make the network trainable, train it, and hand on the best state as a network again."""

from __future__ import annotations

import dataclasses
import time

import torch

from roundwise.engine.checkpoint import Checkpoint, fingerprint
from roundwise.engine.features import WatchedNetwork, feature_names
from roundwise.engine.final_error import output_errors
from roundwise.engine.network import Network
from roundwise.engine.processes import Processes
from roundwise.engine.run import Run
from roundwise.engine.trainable import Trainable
from roundwise.engine.trainer import Trainer
from roundwise.engine.training_data import training_data
from roundwise.errors import RecipeError
from roundwise.recipe.finetune import Finetune
from roundwise.report import StageReport, worst_error


def run_finetune(stage: Finetune, network: Network, run: Run) -> Network:
    """Train a network.

    Raises:
        CalibrationError: the samples do not fit the network.
        ModelError: the loss is not finite, or nothing can be trained.
        RecipeError: there are no samples.
    """
    if not run.has_data:
        raise RecipeError("Finetune needs samples to train on, and there are none. Give samples, or leave it out.")
    start, given, processes = time.perf_counter(), run.training, Processes.present()
    data = training_data(given.samples, network.facts.signature, stage.batch_size, run.seed, processes)
    trainable = Trainable(network, stage.quantization).to(run.device)
    original = network.original or network.graph
    features = feature_names(original, stage.features)
    teacher = None
    if stage.labels < 1 or features:
        nodes = {node.name: node for node in original.operations.nodes}
        watched = [nodes[name] for name in features]
        teacher = WatchedNetwork(original.module(), original.operations, original.structure, watched)
    checkpoint = None
    if given.journal is not None:
        identity = fingerprint(dataclasses.asdict(stage) | {"seed": run.seed}, trainable.state_dict(), data.samples)
        checkpoint = Checkpoint(given.journal, identity)
    arguments = (features, run.seed, run.device, run.progress, checkpoint, given.augmentation, processes)
    with torch.random.fork_rng(), torch.enable_grad():
        trainer = Trainer(trainable, teacher, data, stage, *arguments)
        trainer.run()
    seconds = time.perf_counter() - start
    notes = [f"training: {note}" for note in network.graph.training.notes]
    if data.note:
        notes.append(data.note)
    if trainer.best_epoch == 0:
        notes.append(
            "training did not help: no epoch lowered the loss on held-out samples, so the network from before training "
            "was kept. More samples, a smaller learning rate or fewer kinds of parameters (`only`) may help"
        )
    elif network.weights:
        notes.append("the figures of single layers and activations are those before training")
    trained = trainable.to_network()
    notes += [note for stage in trained.reports[len(network.reports) :] for note in stage.notes]
    assert run.calibration is not None
    outputs = output_errors(trained, original, run.calibration, run.device)
    report = StageReport(
        "finetune",
        {"training": seconds},
        tuple(notes),
        output_error=worst_error(outputs) if outputs else None,
        outputs=outputs,
        epochs=tuple(trainer.epochs),
    )
    return dataclasses.replace(trained, reports=(*network.reports, report))
