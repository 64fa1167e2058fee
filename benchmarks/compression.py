"""Accuracy of compressed networks without training: each run adds a line to a journal, and skips what is in it.

    python benchmarks/compression.py --network resnet20 --macs 0.75 0.5 0.35 --seeds 0 1 2
    python benchmarks/compression.py --network mobilenet_v2 --samples 512 --macs 0.75 --seeds 0
    python benchmarks/compression.py --network resnet20 --methods spatial-svd --choice same-ratio --multiple 1
    python benchmarks/compression.py --network resnet20 --data-free
    python benchmarks/compression.py --page                                      all of the journal as a table

Each seed draws other calibration images. Accuracy is that on all evaluation images, in percent; `predicted` is the sum
of the errors that the choice of sizes expected, `error` the relative error of the outputs that was measured. Seconds
are of the whole call; `cpu` are those that the processor worked, on which other programs have less influence.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import networks
import torch
from torch import Tensor

import roundwise as rw
from roundwise.methods.compression import COMPRESSION_METHODS, RATIO_CHOICES
from roundwise.recipe.compress import DEFAULT_METHODS
from roundwise.recipe.files import name_of

JOURNAL = Path(__file__).parents[1] / "papers" / "structured_compression_2019" / "results.jsonl"
DEFAULTS = [name_of(method, COMPRESSION_METHODS) for method in DEFAULT_METHODS]

Found = dict[str, Any]


def calibration(network: str, samples: int, seed: int) -> Tensor:
    """Images that a seed has drawn."""
    data = networks._module("data/samples.py")
    if network != "resnet20":
        drawn: Tensor = data.imagenet_calibration(samples, seed)
        return drawn
    images: Tensor = data.cifar10("calibration")[0]
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:samples]]


def lines(path: Path) -> list[Found]:
    """The journal."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def measure(task: networks.Task, what: Found) -> Found:
    """Compress once, and measure."""
    images = calibration(what["network"], what["samples"] or 2, what["seed"])
    stage = rw.Compress(
        macs=what["macs"],
        methods=tuple(COMPRESSION_METHODS[name]() for name in what["methods"]),
        choice=RATIO_CHOICES[what["choice"]](),
        multiple=what["multiple"],
    )
    data = images if what["samples"] else rw.DataFree(tuple(images.shape[1:]))
    start, cpu = time.perf_counter(), time.process_time()
    small = rw.compress(task.model, data, rw.Recipe((rw.Rewrite(), stage), seed=what["seed"]))
    spent = {"seconds": round(time.perf_counter() - start, 1), "cpu": round(time.process_time() - cpu, 1)}
    entry = small.report.stages[-1]
    (macs, macs_left), (parameters, parameters_left) = entry.macs, entry.parameters
    return {
        "accuracy": round(task.accuracy(small), 3),
        "macs_left": round(macs_left / macs, 4),
        "parameters_left": round(parameters_left / parameters, 4),
        "predicted": float(f"{sum(one.predicted for one in entry.compressed if one.method):.4g}"),
        "error": None if entry.output_error is None else float(f"{entry.output_error:.4g}"),
        "cut": sum(bool(one.method) for one in entry.compressed),
        "notes": sum(bool(one.note and one.method) for one in entry.compressed),
        **spent,
    }


def page(path: Path) -> str:
    """The journal as a table: the mean over seeds, with the range, of the drop from the float network."""
    settings: dict[tuple[Any, ...], list[Found]] = {}
    for line in lines(path):
        keys = ("network", "samples", "methods", "choice", "multiple", "macs")
        settings.setdefault(tuple(str(line[key]) for key in keys), []).append(line)
    rows = [
        "| network | samples | methods | choice | multiple | MACs | accuracy | drop, mean | drops | cpu s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, found in settings.items():
        drops = [line["float"] - line["accuracy"] for line in found]
        accuracy, cpu = (statistics.mean(line[name] for line in found) for name in ("accuracy", "cpu"))
        each = " ".join(f"{drop:.1f}" for drop in drops)
        rows.append(f"| {' | '.join(key)} | {accuracy:.1f} | {statistics.mean(drops):.2f} | {each} | {cpu:.0f} |")
    return "\n".join(rows)


def main() -> None:
    """Parse the command line, run what is not in the journal yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--data-free", action="store_true", help="approximate the weights alone")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=list(COMPRESSION_METHODS), default=DEFAULTS)
    parser.add_argument("--choice", choices=list(RATIO_CHOICES), default="output-error")
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--page", action="store_true", help="print the journal as a table, and run nothing")
    arguments = parser.parse_args()
    if arguments.page:
        print(page(arguments.journal))
        return
    task = networks.load(arguments.network, 2)
    float_accuracy = round(task.accuracy(task.model), 3)
    for seed in arguments.seeds:
        for macs in arguments.macs:
            what: Found = {
                "network": arguments.network,
                "samples": 0 if arguments.data_free else arguments.samples,
                "methods": list(arguments.methods),
                "choice": arguments.choice,
                "multiple": arguments.multiple,
                "macs": macs,
                "seed": seed,
            }
            if any(all(line.get(key) == what[key] for key in what) for line in lines(arguments.journal)):
                continue
            hardware = {"hardware": networks.device_name("cpu"), "torch": torch.__version__}
            line = what | {"float": float_accuracy} | measure(task, what) | hardware
            arguments.journal.parent.mkdir(parents=True, exist_ok=True)
            with arguments.journal.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
