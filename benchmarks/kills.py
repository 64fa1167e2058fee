"""Kill processes while they write files, and see what is left: `python benchmarks/kills.py` (about ten minutes).

For each kind of file and each signal, a process writes two versions of one file in turn, without end. It is killed at a
random moment. Then

1. the file must be one of the two versions, whole (or a journal of whole lines);
2. after one more write, by a process that is not killed, the folder must hold nothing but the file, and the data file
   that an ONNX file refers to.

The script prints one line per kind and signal and ends with code 1 if anything was broken or left over.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime
import torch
from torch import nn

import roundwise as rw
from roundwise.exporters.onnx import datafile, exporter
from roundwise.reproduction import Journal
from roundwise.reproduction.journal import Outcome

INPUTS = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def versions() -> list[rw.Model]:
    """Two networks of the same size."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 10)).eval()
    stages = [rw.Quantize(rw.Weights(bits=bits), rw.rounding.Nearest()) for bits in (3, 8)]
    return [rw.quantize(network, INPUTS, stage) for stage in stages]


class Kind(ABC):
    """A kind of file: how a version of it is written, and whether what is found is one of the versions."""

    name: ClassVar[str]

    def __init__(self, models: list[rw.Model]) -> None:
        self.models = models

    @abstractmethod
    def write(self, path: Path, version: int) -> None:
        """Write a version, 0 or 1."""

    @abstractmethod
    def is_whole(self, path: Path) -> bool:
        """Whether the file is one of the versions."""

    def belongs(self, path: Path) -> set[str]:
        """The names that the folder must hold."""
        return {path.name}


class Saved(Kind):
    """A `.rw` file."""

    name = "net.rw"

    def write(self, path: Path, version: int) -> None:
        self.models[version].save(path)

    def is_whole(self, path: Path) -> bool:
        found = rw.load(path)(INPUTS)
        return any(torch.equal(found, model(INPUTS)) for model in self.models)


class Onnx(Kind):
    """An ONNX file with a data file."""

    name = "net.onnx"

    def write(self, path: Path, version: int) -> None:
        exporter.LARGEST_SINGLE_FILE = 0  # so that the data has a file of its own
        datafile.LEAST_SECONDS = 0.1
        rw.export(self.models[version], path)

    def is_whole(self, path: Path) -> bool:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: INPUTS.numpy()})
        return any(torch.allclose(torch.from_numpy(found), model(INPUTS), rtol=1e-4) for model in self.models)

    def belongs(self, path: Path) -> set[str]:
        content = path.read_bytes()
        return {path.name, *(it.name for it in path.parent.iterdir() if it.name.encode() in content)}


class Report(Kind):
    """A page."""

    name = "net.html"

    def write(self, path: Path, version: int) -> None:
        rw.html_report(self.models[version], path)

    def is_whole(self, path: Path) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            for version in (0, 1):
                self.write(Path(folder) / f"{version}.html", version)
            return any((Path(folder) / f"{version}.html").read_bytes() == path.read_bytes() for version in (0, 1))


class Runs(Kind):
    """A journal: its versions are one more run each time."""

    name = "runs.jsonl"

    def write(self, path: Path, version: int) -> None:
        journal = Journal(path)
        journal.add(f"run {len(list(journal))} {'x' * 5000}", Outcome(1.0, 2.0))

    def is_whole(self, path: Path) -> bool:
        return [key.split()[1] for key in Journal(path)] == [str(number) for number in range(len(list(Journal(path))))]


KINDS = (Saved, Onnx, Report, Runs)


def kill(kind: Kind, folder: Path, number: int, seconds: float) -> tuple[bool, set[str]]:
    """Kill a writing process after so long; returns whether the file was whole, and what too much the folder held."""
    path = folder / kind.name
    process = os.fork()
    if process == 0:
        try:
            for turn in range(1_000_000):
                kind.write(path, turn % 2)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(process, number)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status), "the process ended by itself"
    assert os.WTERMSIG(status) == number
    try:
        whole = kind.is_whole(path)
    except Exception as error:  # what cannot be read is not whole, whatever the reader says
        print(f"{path}: {type(error).__name__}: {error}", file=sys.stderr)
        whole = False
    kind.write(path, 0)
    return whole, {it.name for it in folder.iterdir()} - kind.belongs(path)


def run(kind: Kind, number: int, times: int, chance: random.Random) -> dict[str, Any]:
    """Kill `times` processes; returns how often the file was whole, and how often something was left over."""
    with tempfile.TemporaryDirectory() as folder:
        kind.write(Path(folder) / kind.name, 0)
        begin = time.perf_counter()
        kind.write(Path(folder) / kind.name, 1)
        longest = 2.5 * (time.perf_counter() - begin)
        results = [kill(kind, Path(folder), number, chance.uniform(0, longest)) for _ in range(times)]
    return {
        "kind": kind.name,
        "signal": signal.Signals(number).name,
        "kills": times,
        "whole": sum(whole for whole, _ in results),
        "left over": sorted(set().union(*(rest for _, rest in results))),
    }


def main() -> None:
    """Parse the command line and kill."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of each signal, over all kinds of files (default 100)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance, models = random.Random(arguments.seed), versions()  # noqa: S311  not for secrets
    results = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        for kind in KINDS:
            results.append(run(kind(models), number, -(-arguments.kills // len(KINDS)), chance))
            print(results[-1], flush=True)
    kills, whole = (sum(result[key] for result in results) for key in ("kills", "whole"))
    print(f"{whole} of {kills} files were whole; left over: {[rest for it in results for rest in it['left over']]}")
    sys.exit(whole < kills or any(result["left over"] for result in results))


if __name__ == "__main__":
    main()
