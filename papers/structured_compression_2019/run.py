"""The study of structured compression: one command a table, one line in the journal for each finished run.

    cd papers/structured_compression_2019
    python run.py methods      levels 1 and 2: each method, on weights alone and on images
    python run.py choices      how sizes are chosen; 512 labelled images to compare accuracies
    python run.py together     SVD, pruning, one choice over both, one after the other
    python run.py training     level 3: distillation after compression, on the images alone
    python run.py bits         4-bit weights after compression, and the size of the files
    python run.py latency      speed in ONNX Runtime, before and after, and with 8 bits
    python run.py defaults     what `rw.compress(model, images, macs=…)` reaches
    python run.py page         writes results.md from the journal

`--network mobilenet_v2 --samples 512` takes another network, `--shares 0.5 0.25` other shares of the multiplications,
`--only spatial-svd` some rows of a table. What is in the journal is not run again.

Each seed draws other calibration images. Accuracy is that on all evaluation images, in percent; `predicted` is the sum
of the errors that the choice of sizes expected, `error` the relative error of the outputs that was measured. `cpu` are
the seconds that the processor worked, on which other programs have less influence than on the whole time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import roundwise as rw
from roundwise.methods.compression import COMPRESSION_METHODS
from roundwise.runtimes import OnnxRuntime, time_file

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "benchmarks"))
import networks  # noqa: E402  where the networks and images are

SHARES = {
    "methods": (0.75, 0.5, 0.35),
    "choices": (0.75, 0.5),
    "training": (0.5, 0.35),
    "latency": (0.5,),
    "bits": (0.5,),
}
SPATIAL, PRUNING = rw.compression.SpatialSVD(), rw.compression.BackwardElimination()
LABELLED = 512
"""Images whose accuracy `EqualAccuracyLoss` compares, 9 times for each layer. The paper takes a few hundred too."""

TURNS = 30
"""Two networks run in turn, so many times each; the fastest run of each counts."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of a table: what is done.

    Attributes:
        name: of the row.
        stages: of the recipe, for a share of the multiplications.
        data_free: whether it sees weights alone.
        evaluates: whether it compares accuracies.
    """

    name: str
    stages: Callable[[float], Sequence[Any]]
    data_free: bool = False
    evaluates: bool = False


def cut(*methods: Any, choice: Any = None, multiple: int = 8) -> Callable[[float], Sequence[Any]]:
    """One stage."""
    more = {} if choice is None else {"choice": choice}
    return lambda share: (rw.Rewrite(), rw.Compress(macs=share, methods=methods, multiple=multiple, **more))


def one_after_the_other(share: float) -> Sequence[Any]:
    """Chains first, then fewer channels; both leave the same share."""
    first, second = (rw.Compress(macs=share**0.5, methods=(method,)) for method in (SPATIAL, PRUNING))
    return rw.Rewrite(), first, second


def default(share: float) -> Sequence[Any]:
    """What `rw.compress` does by itself."""
    return rw.Rewrite(), rw.Compress(macs=share)


def then(*stages: Any) -> Callable[[float], Sequence[Any]]:
    """The default, and what follows it."""
    return lambda share: (*default(share), *stages)


def rows(table: str) -> Iterator[Row]:
    """The rows of a table."""
    if table == "methods":
        for name, method in COMPRESSION_METHODS.items():
            yield Row(f"{name}, weights alone", cut(method()), data_free=True)
        for name, method in COMPRESSION_METHODS.items():
            yield Row(name, cut(method()))
    elif table == "choices":
        yield Row("same ratio", cut(SPATIAL, choice=rw.compression.SameRatio()))
        yield Row("output error", cut(SPATIAL))
        yield Row("equal accuracy loss", cut(SPATIAL, choice=rw.compression.EqualAccuracyLoss()), evaluates=True)
    elif table == "together":
        yield Row("spatial SVD", cut(SPATIAL))
        yield Row("channels", cut(PRUNING))
        yield Row("one choice over both", cut(SPATIAL, PRUNING))
        yield Row("spatial SVD, then channels", one_after_the_other)
        yield Row("all methods", cut(*(method() for method in COMPRESSION_METHODS.values())))
    elif table == "training":
        yield Row("compressed", default)
        yield Row("and distilled", then(rw.Finetune(epochs=6)))
    elif table == "bits":
        yield Row("compressed", default)
        yield Row("and 4 bits", then(rw.Quantize(rw.Weights(bits=4))))
    else:
        yield Row("default", default)


def measure(study: Study, row: Row, share: float, seed: int) -> Found:
    """Compress once, and measure."""
    images, labels = study.images(seed)
    recipe = rw.Recipe(tuple(row.stages(share)), seed=seed)
    data = rw.DataFree(tuple(images.shape[1:])) if row.data_free else images

    def accuracy(network: torch.nn.Module) -> float:
        seen = networks.Task(study.task.model, images[:2], images[:LABELLED], labels[:LABELLED])
        return seen.accuracy(network)

    start, cpu = time.perf_counter(), time.process_time()
    small = rw.compress(study.task.model, data, recipe, evaluate=accuracy if row.evaluates else None)
    spent = {"seconds": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1)}
    entries = [one for one in small.report.stages if one.compressed]
    (macs, _), (_, macs_left) = entries[0].macs, entries[-1].macs
    (parameters, _), (_, parameters_left) = entries[0].parameters, entries[-1].parameters
    error = small.report.stages[-1].output_error
    with tempfile.TemporaryDirectory() as folder:
        small.save(Path(folder) / "small.rw")
        size = (Path(folder) / "small.rw").stat().st_size
    return {
        "accuracy": round(study.task.accuracy(small), 3),
        "macs_left": round(macs_left / macs, 4),
        "parameters_left": round(parameters_left / parameters, 4),
        "predicted": float(f"{sum(one.predicted for e in entries for one in e.compressed if one.method):.4g}"),
        "error": None if error is None else float(f"{error:.4g}"),
        "bytes": size,
        **spent,
    }


def latencies(study: Study, share: float, seed: int) -> Found:
    """The time of networks in ONNX Runtime, as shares of the float network's; each pair runs in turn."""
    images, _ = study.images(seed)
    bits = rw.Quantize(rw.Weights(bits=8), rw.rounding.Nearest(), rw.Activations(bits=8))
    recipes = {
        "float": rw.Recipe((rw.Rewrite(),), seed=seed),
        "macs": rw.Recipe((rw.Rewrite(), rw.Compress(macs=share)), seed=seed),
        "latency": rw.Recipe((rw.Rewrite(), rw.Compress(latency=share)), seed=seed),
        "macs, 8 bits": rw.Recipe((rw.Rewrite(), rw.Compress(macs=share), bits), seed=seed),
    }
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, recipe in recipes.items():
            try:
                made = (rw.quantize if name == "float" else rw.compress)(study.task.model, images, recipe)
            except rw.errors.RecipeError as error:  # so little time cannot be reached
                found[f"accuracy, {name}"] = str(error).partition(":")[0]
                continue
            rw.export(made, Path(folder) / f"{name}.onnx")
            files[name] = OnnxRuntime(threads=1).open(Path(folder) / f"{name}.onnx")
            found[f"accuracy, {name}"] = round(study.task.accuracy(made), 3)
        values = {files["float"].inputs[0]: images[:1].numpy()}
        for name in list(files)[1:]:
            seconds = [
                [min(time_file(files[which], values, runs=1, warm_up=1).seconds) for which in ("float", name)]
                for _ in range(TURNS)
            ]
            before, after = np.min(seconds, axis=0)
            found[f"speed, {name}"] = round(float(before / after), 3)
    return found


@dataclass(frozen=True)
class Study:
    """What all runs share.

    Attributes:
        network: its name.
        samples: that each run sees.
        task: the network, and the evaluation images.
        journal: where finished runs are kept.
    """

    network: str
    samples: int
    task: networks.Task
    journal: Path

    def images(self, seed: int) -> tuple[Tensor, Tensor]:
        """Images that a seed has drawn, with labels; only those of CIFAR-10 are known."""
        data = networks._module("data/samples.py")
        if self.network != "resnet20":
            drawn: Tensor = data.imagenet_calibration(self.samples, seed)
            return drawn, torch.zeros(len(drawn), dtype=torch.int64)
        images, labels = data.cifar10("calibration")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: self.samples]
        return images[order], labels[order]

    def lines(self) -> list[Found]:
        """The journal."""
        return [json.loads(line) for line in self.journal.read_text().splitlines()] if self.journal.is_file() else []

    def run(self, table: str, row: str, share: float, seed: int, work: Callable[[], Found]) -> None:
        """Do the work and put what it found into the journal, unless it is there."""
        what: Found = {"table": table, "network": self.network, "samples": self.samples, "row": row, "macs": share}
        what["seed"] = seed
        if any(all(line.get(key) == what[key] for key in what) for line in self.lines()):
            return
        found = work()
        line = what | found | {"float": round(self.task.accuracy(self.task.model), 3)}
        line |= {"hardware": networks.device_name("cpu"), "torch": torch.__version__}
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        with self.journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def page(lines: Sequence[Found]) -> str:
    """The journal as tables: the mean over seeds of what is left, and of the drop from the float network."""
    text = ["# Results", ""]
    for table in dict.fromkeys(line["table"] for line in lines):
        text += [f"## {table}", ""]
        mine = [line for line in lines if line["table"] == table]
        if table == "latency":
            names = sorted({name for line in mine for name in line if name.startswith(("speed", "accuracy, "))})
            text += [f"| network | share | seed | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
            for line in mine:
                figures = " | ".join(str(line.get(name, "")) for name in names)
                text.append(f"| {line['network']} | {line['macs']:g} | {line['seed']} | {figures} |")
            text.append("")
            continue
        text += [
            "| network | images | row | MACs | seeds | accuracy, % | drop | parameters | output error | cpu s |",
            "|---" * 10 + "|",
        ]
        groups: dict[tuple[Any, ...], list[Found]] = {}
        for line in mine:
            groups.setdefault((line["network"], line["samples"], line["row"], line["macs"]), []).append(line)
        for (network, samples, row, macs), found in groups.items():
            drops = [line["float"] - line["accuracy"] for line in found]
            accuracy, parameters, cpu = (
                statistics.mean(line[name] for line in found) for name in ("accuracy", "parameters_left", "cpu")
            )
            errors = [line["error"] for line in found if line["error"] is not None]
            error = f"{statistics.mean(errors):.4f}" if errors else "–"
            text.append(
                f"| {network} | {samples:,} | {row} | {macs:.0%} | {len(found)} | {accuracy:.2f} | "
                f"{statistics.mean(drops):.2f} | {parameters:.0%} | {error} | {cpu:.0f} |"
            )
        text.append("")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = ("methods", "choices", "together", "training", "bits", "latency", "defaults")
    parser.add_argument("command", choices=(*tables, "page"))
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--shares", type=float, nargs="+", help="of the multiplications that are left")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows of the table; all by default")
    parser.add_argument("--folder", type=Path, default=HERE, help="of the journal")
    options = parser.parse_args(arguments)
    journal = options.folder / "results.jsonl"
    if options.command == "page":
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        (options.folder / "results.md").write_text(page(lines))
        return
    study = Study(options.network, options.samples, networks.load(options.network, 2), journal)
    for seed in options.seeds:
        for share in options.shares or SHARES.get(options.command, (0.75, 0.5)):
            if options.command == "latency":
                study.run("latency", "default", share, seed, partial(latencies, study, share, seed))
                continue
            for row in rows(options.command):
                if options.only is None or row.name in options.only:
                    work = partial(measure, study, row, share, seed)
                    study.run(options.command, row.name, share, seed, work)


if __name__ == "__main__":
    main()
