"""What training with learned scales reaches: each command adds lines to a journal, and skips what is in it.

    python benchmarks/training.py reference --seeds 0 1 2   ResNet-20 in float, trained on; the next command starts here
    python benchmarks/training.py low-bits --seeds 0 1 2    W4A4, W3A3 and W2A2 on 25,000 images, in ONNX Runtime too
    python benchmarks/training.py no-labels --seeds 0 1 2   minutes on 2,048 unlabelled images: W2, and W4A4
    python benchmarks/training.py imagenet --seeds 0 1 2    MobileNetV2 and EfficientNet-Lite0, W4A8, 512 images
    python benchmarks/training.py step                      the cost of a training step, beside the float network's
    python benchmarks/training.py kills                     20 runs, each killed at a random moment and resumed
    python benchmarks/training.py page                      all of it as tables

Accuracy is that on all evaluation images, in percent. The reference is trained by SGD with labels; the quantized
network starts from it and learns from its outputs, without labels. Seconds are of the whole call, with calibration;
`cpu` are those that the processor worked, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networks
import torch
from default_session import load as load_task
from torch import Tensor, nn

import roundwise as rw

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "papers" / "lsqplus_2020"))
import swish  # noqa: E402  random crops and flips, and the float training

EPOCHS = {4: 8, 3: 8, 2: 16}
"""Of low bits. An epoch of 25,000 images takes two to three minutes on a core."""

RATES = {4: 3e-4, 3: 1e-3, 2: 1e-3}
"""Learning rates of low bits. At 4 bits training starts near the float network, and larger steps lead away from it."""

Found = dict[str, Any]


class Book:
    """The journal, a line for each run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "training.jsonl"

    def lines(self) -> list[Found]:
        """All lines."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []

    def run(self, what: Found, work: Callable[[], Found]) -> None:
        """Do some work and note what was found, unless it is known."""
        if any(all(line.get(key) == what[key] for key in what) for line in self.lines()):
            return
        print(what, flush=True)
        start, cpu = time.perf_counter(), time.process_time()
        found = work()
        spent = {"seconds": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1)}
        line = what | found | spent | {"hardware": networks.device_name("cpu")}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def weights(self, seed: int) -> Path:
        """The reference of a seed."""
        return self.folder / f"resnet20-{seed}.pt"


def told(event: object) -> None:
    """Print the events of epochs."""
    if "held-out" in str(event):
        print(f"  {event}", flush=True)


def in_onnx_runtime(model: rw.Model, task: networks.Task) -> Found:
    """Accuracy in ONNX Runtime's default session, and the share of images with the same class as in PyTorch."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        rw.export(model, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        theirs = torch.cat(
            [torch.from_numpy(session.run(None, {name: part.numpy()})[0]) for part in task.images.split(250)]
        ).argmax(1)
    with torch.no_grad():
        ours = torch.cat([model(part).argmax(1) for part in task.images.split(250)])
    return {
        "onnxruntime": networks.percent(theirs == task.labels),
        "same_class": networks.percent(theirs == ours),
    }


def training_images() -> tuple[Tensor, Tensor]:
    """25,000 images with their classes."""
    images, labels = networks._module("data/samples.py").cifar10_training(25_000)
    return images, labels


# ------------------------------------------------------------------------------------------------------ the commands


def reference(book: Book, options: argparse.Namespace) -> None:
    """Train ResNet-20 on, in float."""
    for seed in options.seeds:

        def work(seed: int = seed) -> Found:
            task = networks.load("resnet20", 1)
            swish.train(task.model, *training_images(), seed=seed, epochs=8, learning_rate=0.02)
            torch.save(task.model.state_dict(), book.weights(seed))
            return {"accuracy": task.accuracy(task.model)}

        book.run({"table": "reference", "network": "resnet20", "seed": seed}, work)


def low_bits(book: Book, options: argparse.Namespace) -> None:
    """Quantize the reference to few bits and train it, against its own float outputs."""
    for seed in options.seeds:
        for bits in options.bits:
            epochs, rate = options.epochs or EPOCHS[bits], options.learning_rate or RATES[bits]

            def work(seed: int = seed, bits: int = bits, epochs: int = epochs, rate: float = rate) -> Found:
                task = networks.load("resnet20", 1)
                task.model.load_state_dict(torch.load(book.weights(seed), weights_only=True))
                recipe = rw.Recipe(
                    (
                        rw.Quantize(
                            rw.Weights(bits=bits, granularity=networks.GRANULARITIES[options.granularity]),
                            activations=rw.Activations(bits=bits),
                            edge_bits=8,
                        ),
                        rw.Finetune(epochs=epochs, batch_size=128, learning_rate=rate),
                    ),
                    seed=seed,
                )
                state = book.folder / f"W{bits}A{bits}-{seed}-{epochs}-{rate:g}-{options.granularity}"
                images, _ = training_images()
                model = rw.finetune(
                    task.model, images, recipe, augmentation=swish.augmented, journal=state, progress=told
                )
                before = model.report.stages[-1].epochs[0].held_out
                return {
                    "float": task.accuracy(task.model),
                    "accuracy": task.accuracy(model),
                    "held_out": [before, *(epoch.held_out for epoch in model.report.stages[-1].epochs[1:])],
                } | in_onnx_runtime(model, task)

            what = {"table": "low-bits", "network": "resnet20", "bits": f"W{bits}A{bits}", "seed": seed}
            book.run(what | {"granularity": options.granularity, "epochs": epochs, "learning_rate": rate}, work)


def without_labels(book: Book, options: argparse.Namespace) -> None:
    """Train scales, biases and norms on the calibration images alone."""
    few = rw.Finetune(epochs=options.epochs or 4, only=("scales", "biases", "norms"))
    cases = {
        "W2": rw.Quantize(rw.Weights(bits=2)),
        "W4A4": rw.Quantize(rw.Weights(bits=4), activations=rw.Activations(bits=4), edge_bits=options.edge_bits),
    }
    for seed in options.seeds:
        for bits, quantize in cases.items():

            def work(seed: int = seed, quantize: rw.Quantize = quantize) -> Found:
                task = networks.load("resnet20", 2048)
                before = rw.quantize(task.model, task.calibration, rw.Recipe((rw.Rewrite(), quantize), seed=seed))
                stages = (rw.Rewrite(), quantize, few)
                start = time.perf_counter()
                recipe = rw.Recipe(stages, seed=seed)
                images = task.calibration
                after = rw.finetune(task.model, images, recipe, calibration=images, progress=told)
                return {
                    "float": task.accuracy(task.model),
                    "before": task.accuracy(before),
                    "accuracy": task.accuracy(after),
                    "seconds_of_training": round(time.perf_counter() - start, 1),
                }

            what = {"table": "no-labels", "network": "resnet20", "bits": bits, "seed": seed}
            book.run(what | {"epochs": few.epochs, "edge_bits": options.edge_bits}, work)


def imagenet(book: Book, options: argparse.Namespace) -> None:
    """MobileNetV2 and EfficientNet-Lite0 with 4-bit weights and 8-bit activations, 512 images."""
    for seed, network, granularity, bits in (
        (seed, network, granularity, bits)
        for seed in options.seeds
        for network in options.networks
        for bits in options.activations
        for granularity in ("per-channel", "per-tensor")
    ):

        def work(seed: int = seed, network: str = network, granularity: str = granularity, bits: int = bits) -> Found:
            task = load_task(network, 512)
            quantize = rw.Quantize(
                rw.Weights(granularity=networks.GRANULARITIES[granularity]), activations=rw.Activations(bits=bits)
            )
            few = rw.Finetune(epochs=options.epochs or 4, batch_size=32, only=tuple(options.only))
            before = rw.quantize(task.model, task.calibration, rw.Recipe((rw.Rewrite(), quantize), seed=seed))
            stages = rw.Recipe((rw.Rewrite(), quantize, few), seed=seed)
            after = rw.finetune(task.model, task.calibration, stages, calibration=task.calibration, progress=told)
            with torch.no_grad():
                classes, *others = (
                    torch.cat([model(part).argmax(1) for part in task.images.split(50)])
                    for model in (task.model, before, after)
                )
            agree = [other == classes for other in others]
            difference = (agree[1].float() - agree[0].float()).double()
            return {
                "float": task.accuracy(task.model),
                "before": networks.percent(others[0] == task.labels),
                "accuracy": networks.percent(others[1] == task.labels),
                "agreement_before": networks.percent(agree[0]),
                "agreement": networks.percent(agree[1]),
                "gain": 100 * float(difference.mean()),
                "standard_error": 100 * float(difference.std()) / math.sqrt(len(difference)),
            }

        what = {"table": "imagenet", "network": network, "bits": f"W4A{bits}", "granularity": granularity}
        book.run(what | {"seed": seed, "only": list(options.only)}, work)


def step(book: Book, options: argparse.Namespace) -> None:
    """The time of a training step with quantizers, and of the float network's, alternately."""
    for network in ("resnet20", "mobilenet_v2"):

        def work(network: str = network) -> Found:
            task = networks.load(network, 128 if network == "resnet20" else 32)
            quantize = rw.Quantize(rw.Weights(bits=4), rw.rounding.Nearest(), rw.Activations(bits=4), edge_bits=8)
            quantized = rw.trainable(task.model, task.calibration, rw.Recipe((rw.Rewrite(), quantize)))
            steps = [stepper(task.model, task.calibration), stepper(quantized, task.calibration)]
            for one in steps:
                one()
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(options.pairs):
                for one, kept in zip(steps, times, strict=True):
                    start = time.perf_counter()
                    one()
                    kept.append(time.perf_counter() - start)
            ratios = [mine / theirs for theirs, mine in zip(*times, strict=True)]
            return {
                "float_seconds": statistics.median(times[0]),
                "seconds_of_step": statistics.median(times[1]),
                "ratio": statistics.median(ratios),
                "ratios": [min(ratios), max(ratios)],
            }

        book.run({"table": "step", "network": network, "bits": "W4A4", "threads": torch.get_num_threads()}, work)


def stepper(model: nn.Module, images: Tensor) -> Callable[[], None]:
    """A function that trains a network by one step on fixed targets."""
    with torch.no_grad():
        targets = model.eval()(images).softmax(1)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, 1e-5)

    def one() -> None:
        loss = nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return one


def kills(book: Book, options: argparse.Namespace) -> None:
    """Kill training at random moments, resume it, and compare the end with that of a run that was never killed."""

    def work() -> Found:
        with tempfile.TemporaryDirectory() as name:
            folder, drawn = Path(name), random.Random(0)  # noqa: S311
            command = [sys.executable, __file__, "one-run"]
            start = time.perf_counter()
            subprocess.run([*command, str(folder / "whole")], check=True)
            whole, same, killed = time.perf_counter() - start, 0, 0
            for number in range(options.pairs):
                state = folder / str(number)
                while True:
                    process = subprocess.Popen([*command, str(state)])
                    try:
                        process.wait(timeout=drawn.uniform(0.2, 1.0) * whole if killed <= number else None)
                        break
                    except subprocess.TimeoutExpired:
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        killed += 1
                same += (state / "end.rw").read_bytes() == (folder / "whole" / "end.rw").read_bytes()
                print(f"{number + 1} runs, {killed} kills, {same} equal", flush=True)
        return {"kills": killed, "runs": options.pairs, "equal": same}

    book.run({"table": "kills", "network": "resnet20", "runs": options.pairs}, work)


def one_run(folder: Path) -> None:
    """A short run with a journal, for `kills`; its result goes to `end.rw`."""
    from roundwise.engine import trainer

    trainer.BETWEEN_CHECKPOINTS = 1.0
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    task = networks.load("resnet20", 512)
    quantize = rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest(), rw.Activations(bits=4), edge_bits=8)
    stages = (rw.Rewrite(), quantize, rw.Finetune(epochs=4, dampening=0.01, weight_average=0.9))
    model = rw.finetune(task.model, task.calibration, stages, augmentation=swish.augmented, journal=folder / "journal")
    torch.save(list(model.state_dict().values()), folder / "end.rw")


# ---------------------------------------------------------------------------------------------------------- the page


def page(book: Book) -> Iterator[str]:
    """Each table: mean and standard deviation over seeds of what was measured."""
    left_out = {"table", "seed", "hardware", "held_out", "only", "ratios"}
    lines = book.lines()
    for table in dict.fromkeys(line["table"] for line in lines):
        groups: dict[tuple[Any, ...], list[Found]] = {}
        for line in (line for line in lines if line["table"] == table):
            key = tuple((k, v) for k, v in line.items() if isinstance(v, str) and k not in left_out)
            groups.setdefault(key, []).append(line)
        numbers = [k for k, v in next(iter(groups.values()))[0].items() if not isinstance(v, str) and k not in left_out]
        names = [k for k, _ in next(iter(groups))]
        yield f"## {table}\n"
        yield "| " + " | ".join([*names, "runs", *numbers]) + " |"
        yield "|---" * (len(names) + 1 + len(numbers)) + "|"
        for key, found in groups.items():
            cells = [str(v) for _, v in key] + [str(len(found))]
            for number in numbers:
                values = [float(line[number]) for line in found if isinstance(line.get(number), int | float)]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "–")
            yield "| " + " | ".join(cells) + " |"
        yield ""


def main() -> None:
    """Run a command."""
    if sys.argv[1:2] == ["one-run"]:
        one_run(Path(sys.argv[2]))
        return
    commands = {
        "reference": reference,
        "low-bits": low_bits,
        "no-labels": without_labels,
        "imagenet": imagenet,
        "step": step,
        "kills": kills,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=(*commands, "page"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="which seeds, such as 0 1 2")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--activations", type=int, nargs="+", default=[8], help="bits of activations, for imagenet")
    parser.add_argument("--granularity", choices=tuple(networks.GRANULARITIES), default="per-channel")
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2", "efficientnet_lite0"])
    parser.add_argument("--only", nargs="+", default=["scales", "biases", "norms"])
    parser.add_argument("--edge-bits", type=int, default=None)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--pairs", type=int, default=20, help="of steps, or runs that are killed")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / "papers" / "lsqplus_2020", help="of weights and journal"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    book = Book(options.folder)
    if options.command == "page":
        print("\n".join(page(book)))
    else:
        commands[options.command](book, options)


if __name__ == "__main__":
    main()
