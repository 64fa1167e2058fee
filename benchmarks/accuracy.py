"""Accuracy of real networks after quantization: network × bits × granularity × solver, over seeds, side by side.

    python benchmarks/accuracy.py --network resnet20 --bits 4 3 --granularity per-tensor \
        --solver adaround:iterations=10000 --seeds 3

Every row shows the float network, nearest rounding and the chosen solver (mean and standard deviation over seeds),
and the paired difference to nearest rounding in points: on how many more evaluation images the solver is right, and the
standard error of that count (McNemar), as both see the same images. `--json FILE` appends each finished run as a
line, so that a long benchmark that was interrupted has lost nothing; `--summary FILE` prints the table of such a file,
and `paired.py` compares solvers in it image by image.
`--equalize` and `--activations` hold for nearest rounding too. `--onnx` exports each network and measures the file in
ONNX Runtime, with its default settings, on the same images.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import networks
import torch

import roundwise as rw
from roundwise.events import Event, Progress
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.recipe.settings import granularity_name
from roundwise.runtimes import OnnxRuntime


def solver_from(text: str) -> rw.rounding.RoundingSolver[Any]:
    """`name` or `name:field=value,field=value`, with values as JSON."""
    name, _, settings = text.partition(":")
    if name not in ROUNDING_SOLVERS:
        raise SystemExit(f"--solver {name}: not one of {', '.join(ROUNDING_SOLVERS)}.")
    pairs = dict(pair.split("=", 1) for pair in settings.split(",") if pair)
    return ROUNDING_SOLVERS[name](**{key: json.loads(value) for key, value in pairs.items()})


def correct_in_onnx_runtime(task: networks.Task, quantized: rw.Model) -> torch.Tensor:
    """Which evaluation images the exported file classifies rightly."""
    runtime = OnnxRuntime(threads=torch.get_num_threads())
    with tempfile.TemporaryDirectory() as folder:
        file = runtime.open(rw.export(quantized, Path(folder) / "network.onnx").path)
        (name,) = file.inputs
        outputs = [file.run({name: images.numpy()})[0] for images in task.images.split(250)]
    return torch.cat([torch.from_numpy(logits).argmax(1) for logits in outputs]) == task.labels


def measure(
    network: str,
    base: rw.Recipe,
    solvers: Mapping[str, rw.rounding.RoundingSolver[Any]],
    *,
    seeds: Iterable[int],
    samples: int,
    onnx: bool = False,
    device: torch.device | str = "cpu",
    journal: Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Quantize one network by a recipe, with each solver and seed in place of its own.

    Returns one record per run, appended to `journal` as it is finished.
    """
    task = networks.load(network, samples, device)
    right_float = task.right(task.model)
    nearest = base.with_settings(rw.Quantize, rounding=rw.rounding.Nearest())
    right_nearest = task.right(rw.quantize(task.model, task.calibration, nearest))
    records = []
    for name, solver in solvers.items():
        for seed in seeds:
            recipe = dataclasses.replace(base.with_settings(rw.Quantize, rounding=solver), seed=seed)
            begin = time.perf_counter()
            quantized = rw.quantize(task.model, task.calibration, recipe, progress=progress)
            seconds = time.perf_counter() - begin
            right = task.right(quantized)
            gained, lost = int((right & ~right_nearest).sum()), int((right_nearest & ~right).sum())
            record = {
                "network": network,
                "bits": base.stage(rw.Quantize).weights.bits,
                "granularity": granularity_name(base.stage(rw.Quantize).weights.granularity),
                "solver": name,
                "seed": seed,
                "samples": samples,
                "float": networks.percent(right_float),
                "nearest": networks.percent(right_nearest),
                "accuracy": networks.percent(right),
                **({"onnx": networks.percent(correct_in_onnx_runtime(task, quantized))} if onnx else {}),
                "right": networks.packed(right),
                "gain_standard_error": 100 * math.sqrt(gained + lost) / len(right),
                "output_error": quantized.report.output_error,
                "layer_errors": {layer.name: layer.error for layer in quantized.report.layers},
                "seconds": seconds,
                "threads": torch.get_num_threads(),
                "hardware": networks.device_name(device),
            }
            records.append(record)
            if journal:
                with journal.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Records as a Markdown table, one row per setting, seeds pooled."""
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        key = tuple(record[name] for name in ("network", "bits", "granularity", "solver", "samples"))
        rows.setdefault(key, []).append(record)
    lines = [
        "| network | bits | granularity | images | float | nearest | solver | accuracy | gain over nearest "
        "| output error | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    if with_onnx := any("onnx" in record for record in records):
        lines = [lines[0] + " in ONNX Runtime |", lines[1] + "---|"]
    for (network, bits, granularity, solver, samples), runs in rows.items():
        accuracies = [r["accuracy"] for r in runs]
        mean = statistics.fmean(accuracies)
        spread = f" ± {statistics.stdev(accuracies):.2f} ({len(runs)} seeds)" if len(runs) > 1 else " (1 seed)"
        gain = mean - runs[0]["nearest"]
        error = statistics.fmean(r["gain_standard_error"] for r in runs)
        output = statistics.fmean(r["output_error"] for r in runs)
        seconds = statistics.median(r["seconds"] for r in runs)
        lines.append(
            f"| {network} | {bits} | {granularity} | {samples} | {runs[0]['float']:.2f} | {runs[0]['nearest']:.2f} "
            f"| {solver} | {mean:.2f}{spread} | {gain:+.2f} ± {error:.2f} | {output:.4f} | {seconds:.0f} |"
        )
        if with_onnx:
            found = [r["onnx"] for r in runs if "onnx" in r]
            lines[-1] += f" {statistics.fmean(found):.2f} |" if found else " |"
    return "\n".join(lines)


def print_event(event: Event) -> None:
    """Progress to the terminal, apart from the table."""
    print(event, file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=["resnet20"])
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3])
    parser.add_argument("--granularity", nargs="+", choices=networks.GRANULARITIES, default=["per-tensor"])
    parser.add_argument("--solver", nargs="+", default=["adaround:iterations=1000"])
    parser.add_argument("--equalize", action="store_true", help="cross-layer equalization first, nearest rounding too")
    parser.add_argument("--activations", type=int, help="quantize activations too, to so many bits")
    parser.add_argument("--onnx", action="store_true", help="measure exported files in ONNX Runtime too")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--summary", type=Path, help="print the table of an earlier --json file and stop")
    parser.add_argument("--verbose", action="store_true", help="show the progress of each run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.summary:
        print(table([json.loads(line) for line in arguments.summary.read_text().splitlines()]))
        return
    activations = None if arguments.activations is None else rw.Activations(bits=arguments.activations)
    suffix = ", equalized" if arguments.equalize else ""
    suffix += f", {arguments.activations}-bit activations" if activations else ""
    records = []
    for network, bits, granularity in itertools.product(arguments.network, arguments.bits, arguments.granularity):
        records += measure(
            network,
            rw.Recipe(
                (
                    rw.Rewrite((rw.rewrites.CrossLayerEqualization(),) if arguments.equalize else ()),
                    rw.Quantize(
                        weights=rw.Weights(bits=bits, granularity=networks.GRANULARITIES[granularity]),
                        activations=activations,
                    ),
                )
            ),
            {f"{text}{suffix}": solver_from(text) for text in arguments.solver},
            seeds=range(arguments.first_seed, arguments.first_seed + arguments.seeds),
            samples=arguments.samples,
            onnx=arguments.onnx,
            device=arguments.device,
            journal=arguments.json,
            progress=print_event if arguments.verbose else None,
        )
    print(f"\n{networks.device_name(arguments.device)}, PyTorch {torch.__version__}\n")
    print(table(records))


if __name__ == "__main__":
    main()
