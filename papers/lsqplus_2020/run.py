"""The study of LSQ+ on small networks: one line in the journal for each finished run, one command a table.

    python papers/lsqplus_2020/run.py train swish              the float networks, once, before all else
    python papers/lsqplus_2020/run.py train resnet20
    python papers/lsqplus_2020/run.py accuracy swish           LSQ (1) against LSQ+ (3, 4), W2A2 and W4A4, three seeds
    python papers/lsqplus_2020/run.py initialization swish     MSE against min-max and statistics, five seeds
    python papers/lsqplus_2020/run.py batch-norm swish         with and without estimating batch-norm anew
    python papers/lsqplus_2020/run.py page                     writes results.md from the journal

Each takes a network, swish or resnet20. What is in the journal is not run again, and a run that was killed goes on from
its last state. `--epochs` says how long a run trains: 3 are meant to take at most 8 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import roundwise as rw
from roundwise.graph.analysis.activations import kind_of
from roundwise.graph.graph import Graph

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parents[1] / "benchmarks")]
import networks  # noqa: E402  where the networks and images are
import swish  # noqa: E402

NETWORKS = ("swish", "resnet20")
CONFIGURATIONS = (1, 3, 4)
STARTS = ("mse", "min-max", "statistics")
FLOAT_TRAINING = {"swish": {"epochs": 20, "learning_rate": 0.1}, "resnet20": {"epochs": 8, "learning_rate": 0.02}}

NOT_QUANTIZED = ("add", "mul", "mean", "avg_pool2d", "adaptive_avg_pool2d")
"""In the paper only what layers read is quantized. Here these operations are left to float, in which they run."""


@dataclass(frozen=True)
class Study:
    """What all runs share: the images, and where things are kept."""

    folder: Path
    images: Tensor
    labels: Tensor
    test: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, folder: Path, count: int) -> Study:
        """With the first `count` training images."""
        data = networks._module("data/samples.py")
        images, labels = data.cifar10_training(count)
        return cls(folder, images, labels, data.cifar10("evaluation"))

    def network(self, name: str, trained: bool = True) -> nn.Module:
        """A float network, as `train` has left it."""
        torch.manual_seed(0)
        model = swish.SwishNet() if name == "swish" else networks._module("models/networks.py").load("resnet20")
        if trained:
            path = self.weights(name)
            if not path.is_file():
                raise SystemExit(f"{path} does not exist: run `python {Path(__file__).name} train {name}` first.")
            model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()

    def weights(self, name: str) -> Path:
        """Where the weights of a float network are kept."""
        return self.folder / f"{name}.pt"

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 on the test images, in percent."""
        images, labels = self.test
        return networks.Task(model, images[:1], images, labels).accuracy(model)

    # ------------------------------------------------------------------------------------------------ the journal

    @property
    def journal(self) -> Path:
        """One line for each finished run."""
        return self.folder / "results.jsonl"

    def finished(self) -> list[dict[str, Any]]:
        """The lines of the journal."""
        return [json.loads(line) for line in self.journal.read_text().splitlines()] if self.journal.is_file() else []

    def known(self, run: dict[str, Any]) -> dict[str, Any] | None:
        """The line of a run; None if it is not finished."""
        return next((line for line in self.finished() if all(line.get(key) == run[key] for key in run)), None)

    def add(self, run: dict[str, Any], **found: Any) -> None:
        """Keep the outcome of a run."""
        with self.journal.open("a") as file:
            file.write(json.dumps(run | found) + "\n")


def recipe(run: dict[str, Any], graph: Graph) -> rw.Recipe:
    """The recipe of a run: weights per channel, activations per tensor, first and last layers at 8 bits."""
    bits, configuration = run["bits"], run["configuration"]
    weights, activations = starting_ranges(run["start"], configuration)
    quantized = rw.Activations(bits=bits, ranges=activations)
    layers = rw.Override(activations=quantized)
    kinds = {kind_of(node) for node in graph.operations.nodes}
    inputs = next(node.name for node in graph.operations.nodes if node.op == "placeholder")
    overrides: dict[str, Any] = {
        **{f"op:{kind}": rw.Override(activations="float") for kind in NOT_QUANTIZED if kind in kinds},
        "op:conv2d": layers,
        "op:linear": layers,
        inputs: rw.Activations(bits=8),  # images have negative values, which configuration 1 would lose
    }
    quantize = rw.Quantize(
        rw.Weights(bits=bits, ranges=weights), rw.rounding.Nearest(), quantized, overrides=overrides, edge_bits=8
    )
    learned = rw.training.LSQ() if configuration == 1 else rw.training.LSQPlus(signed=configuration == 3)
    finetune = rw.Finetune(
        epochs=run["epochs"],
        batch_size=128,
        quantization=learned,
        labels=0.5,
        batch_norm_batches=50 if run["batch_norm"] else 0,
    )
    return rw.Recipe((rw.Rewrite(()), quantize, finetune), seed=run["seed"])


def starting_ranges(start: str, configuration: int) -> tuple[Any, Any]:
    """How ranges of weights and activations are chosen before training."""
    if start == "mse":
        return rw.ranges.WeightMSE(), rw.activations.ActivationMSE(keeps_negatives=configuration != 1)
    if start == "min-max":
        return rw.ranges.MinMax(), rw.activations.ActivationMinMax()
    return rw.ranges.MeanMagnitude(), rw.activations.ActivationMeanMagnitude()


def measure(study: Study, run: dict[str, Any]) -> None:
    """Train one network and put its accuracy into the journal, unless it is there."""
    if study.known(run) is not None:
        return
    name = " ".join(f"{key}={value}" for key, value in run.items())
    print(name, flush=True)
    model, started = study.network(run["network"]), time.perf_counter()
    graph = rw.capture(model, study.images[:4]).graph
    state = study.folder / "runs" / name.replace(" ", "_")
    trained = rw.finetune(
        model,
        (study.images, study.labels),
        recipe(run, graph),
        augmentation=swish.augmented,
        journal=state,
        progress=lambda event: print(f"  {event}", flush=True) if "held-out" in str(event) else None,
    )
    epochs = trained.report.stages[-1].epochs
    study.add(
        run,
        accuracy=study.accuracy(trained),
        held_out=[epoch.held_out for epoch in epochs],
        oscillating=epochs[-1].oscillating,
        seconds=time.perf_counter() - started,
        hardware=networks.device_name("cpu"),
    )
    for file in state.glob("*"):
        file.unlink()


def runs(table: str, network: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs of a table."""
    base = {"network": network, "epochs": options.epochs, "images": options.images, "start": "mse", "batch_norm": True}
    if table == "accuracy":
        for seed in range(options.seeds or 3):
            for bits in options.bits:
                for configuration in CONFIGURATIONS:
                    yield base | {"bits": bits, "configuration": configuration, "seed": seed}
    elif table == "initialization":
        for seed in range(options.seeds or 5):
            for start in STARTS:
                yield base | {"bits": options.bits[0], "configuration": 4, "seed": seed, "start": start}
    else:
        for seed in range(options.seeds or 3):
            for bits in options.bits:
                for batch_norm in (True, False):
                    yield base | {"bits": bits, "configuration": 4, "seed": seed, "batch_norm": batch_norm}


# -------------------------------------------------------------------------------------------------------- the page


def page(study: Study) -> str:
    """All tables of the journal as Markdown: mean and standard deviation over seeds."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for line in study.finished():
        if "configuration" not in line:
            continue
        key = ("network", "bits", "configuration", "start", "batch_norm", "epochs", "images")
        groups.setdefault(tuple(line[name] for name in key), []).append(line["accuracy"])
    rows = [
        "| network | bits | configuration | start | batch-norm anew | epochs | images | seeds | accuracy, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found, scores in sorted(groups.items(), key=str):
        network, bits, configuration, start, batch_norm, epochs, images = found
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        anew = "yes" if batch_norm else "no"
        rows.append(
            f"| {network} | W{bits}A{bits} | {configuration} | {start} | {anew} | {epochs} | {images:,} | "
            f"{len(scores)} | {statistics.mean(scores):.2f}{spread} |"
        )
    floats = [
        f"| {line['network']} | float | – | – | – | {line['float_epochs']} | {line['images']:,} | 1 | "
        f"{line['accuracy']:.2f} |"
        for line in study.finished()
        if "float_epochs" in line
    ]
    return "\n".join(["# Results", "", *rows[:2], *floats, *rows[2:], ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "accuracy", "initialization", "batch-norm", "page"))
    parser.add_argument("network", nargs="?", choices=NETWORKS, default="swish")
    parser.add_argument("--epochs", type=int, default=3, help="of quantized training; 3 take some minutes")
    parser.add_argument("--images", type=int, default=25_000)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--folder", type=Path, default=HERE, help="of weights, states and the journal")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    study = Study.of(options.folder, options.images)
    if options.command == "page":
        (options.folder / "results.md").write_text(page(study))
    elif options.command == "train":
        settings: dict[str, Any] = dict(FLOAT_TRAINING[options.network])
        if "--epochs" in (arguments if arguments is not None else sys.argv):
            settings["epochs"] = options.epochs
        model = study.network(options.network, trained=False)
        swish.train(model, study.images, study.labels, **settings)
        torch.save(model.state_dict(), study.weights(options.network))
        run = {"network": options.network, "float_epochs": settings["epochs"], "images": options.images}
        study.add(run, accuracy=study.accuracy(model))
    else:
        for run in runs(options.command, options.network, options):
            measure(study, run)


if __name__ == "__main__":
    main()
