"""Accuracies of several methods, compared image by image: is one below another by more than chance?

    python benchmarks/paired.py FILE.jsonl [FILE.jsonl ...] --against gram-adaround

The files are what `accuracy.py --json` and `side_by_side.py --json` write. Each row is a method's mean accuracy over
its seeds, less that of the method named by `--against` on the same images, with two standard errors of the difference:
`over seeds`, as if the evaluation images were all there are; and `over images`, of the mean over images of how much
more often the method is right (all networks see the same images, so what most of them get right or wrong cancels out).
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import networks
import torch
from torch import Tensor

Runs = dict[str, dict[int, Tensor]]
"""Which images each method is right about, by method and seed."""


def read(files: list[Path]) -> dict[tuple[Any, ...], Runs]:
    """The runs of all files by setting, the number of images among it; of several of the same run, the last."""
    found: dict[tuple[Any, ...], Runs] = {}
    for file in files:
        for line in file.read_text().splitlines():
            record = json.loads(line)
            if "right" in record:
                right = networks.unpacked(record["right"])
                setting = *(record[name] for name in ("network", "bits", "granularity", "samples")), len(right)
                found.setdefault(setting, {}).setdefault(method(record), {})[record["seed"]] = right
    return found


def method(record: dict[str, Any]) -> str:
    """A solver of ours, or another library, with the settings that are not its defaults; as `--solver` takes them."""
    if "solver" in record:
        return str(record["solver"])
    settings = dict(record["settings"])
    name = settings.pop("solver", record["contestant"])
    fields = ",".join(f"{field}={json.dumps(value)}" for field, value in settings.items())
    return f"{name}:{fields}" if fields else name


def difference(runs: dict[int, Tensor], reference: dict[int, Tensor]) -> tuple[float, float, float]:
    """Points of accuracy by which the runs are better, its standard error over seeds (NaN for one), and over images."""
    one, other = (torch.stack(list(of.values())).double() * 100 for of in (runs, reference))
    gain = one.mean(0) - other.mean(0)
    several = len(one) > 1 and len(other) > 1
    over_seeds = math.sqrt(sum(float(it.mean(1).var()) / len(it) for it in (one, other))) if several else math.nan
    return float(gain.mean()), over_seeds, float(gain.std()) / math.sqrt(len(gain))


def table(settings: dict[tuple[Any, ...], Runs], against: str) -> str:
    """A Markdown table, one row per setting and method."""
    lines = [
        f"| network | bits | granularity | method | seeds | accuracy | less {against} | over seeds | over images |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    alone = [" ".join(map(str, setting[:3])) for setting, methods in settings.items() if against not in methods]
    for (network, bits, granularity, *_), methods in settings.items():
        for name, runs in methods.items():
            accuracy = 100 * float(torch.stack(list(runs.values())).double().mean())
            row = f"| {network} | {bits} | {granularity} | {name} | {len(runs)} | {accuracy:.2f} "
            if name == against or against not in methods:
                lines.append(f"{row}| | | |")
                continue
            gain, over_seeds, over_images = difference(runs, methods[against])
            seeds = "" if math.isnan(over_seeds) else f"± {over_seeds:.2f}"
            lines.append(f"{row}| {gain:+.2f} | {seeds} | ± {over_images:.2f} |")
    if alone:
        lines += ["", f"Not compared, since {against} has no run with as many images there: {', '.join(alone)}."]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--against", default="adaround", help="the method that the others are compared with")
    arguments = parser.parse_args()
    if missing := [str(file) for file in arguments.files if not file.is_file()]:
        parser.error(f"there is no file {', '.join(missing)}; they come of `accuracy.py --json` and the like")
    try:
        settings = read(arguments.files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        parser.error(f"these are not journals of accuracy.py or side_by_side.py: {error!r}")
    if not settings:
        parser.error(f"no run in {', '.join(map(str, arguments.files))} says which images were right; run it again")
    if arguments.against not in (methods := {name for runs in settings.values() for name in runs}):
        parser.error(f"--against {arguments.against}: no such method in these files, but {', '.join(sorted(methods))}")
    print(table(settings, arguments.against))


if __name__ == "__main__":
    main()
