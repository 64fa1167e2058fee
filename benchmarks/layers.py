"""Layer by layer: AdaRound in Gram space against AdaRound on minibatches, on the very same problems.

    python benchmarks/layers.py --network resnet20 --bits 4 3 2 --layers "layer*.conv2" --iterations 10000

The network is quantized in order, by coordinate descent with the bias free, whatever the contenders do: so each layer's
inputs are those of a well-quantized prefix, and the same in every run. At each of the chosen layers every contender
solves the same problem: the same grid, the same samples. With --json a record that is there already, of the same
contender for the same problem (told by the scales and the first batch of inputs), is kept: the minibatch solver takes
minutes a layer, and a run may be stopped and gone on with. After a change of a solver, take a new file.

The objective is the paper's (Eq. 25): Σ over channels ‖f_a(y) − f_a(ŷ)‖², mean over samples and positions, measured on
all samples and all positions, with the activation function. "paper's choices" is AdaRound held to what the paper lets
it choose (floor or ceiling, bias and scale as they were); "default" may also use other codes, the bias and the scale.

Seconds of the Gram-space rows contain the collecting of the moments.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import itertools
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import networks
import torch
from torch import Tensor

import roundwise as rw
from roundwise.graph.matrix import LinearMap
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.statistics import Gram, Samples, Statistic

PAPER = {"any_code": False, "free_bias": False, "fit_scale": False}

PREFIX = rw.rounding.CoordinateDescent(any_code=False, free_bias=True)
"""Quantizes the layers before: fast, and good enough for inputs as they are in practice."""


@final
class Both(Statistic):
    """Samples and moments of the same batches, and the time that the moments took."""

    def __init__(self, samples: Samples, gram: Gram) -> None:
        self.samples, self.gram, self.seconds = samples, gram, 0.0
        self.batches: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def empty(cls, layer: LinearMap, samples: int, generator: torch.Generator) -> Self:
        return cls(Samples.empty(layer, samples, generator), Gram.empty(layer, samples, generator))

    def add(self, inputs: Tensor, targets: Tensor, samples: int) -> None:
        self.samples.add(inputs, targets, samples)
        self.batches.append((inputs, targets))
        _finish()
        begin = time.perf_counter()
        self.gram.add(inputs, targets, samples)
        _finish()
        self.seconds += time.perf_counter() - begin

    def fingerprint(self, problem: Problem[Any]) -> str:
        """Tells whether two problems are the same one."""
        digest = hashlib.sha256(problem.grid.scale.cpu().numpy().tobytes())
        digest.update(self.batches[0][0].contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def objective(self, problem: Problem[Any], rounding: Rounding) -> float:
        """Eq. 25 on all samples."""
        layer, total, positions = self.gram.layer, 0.0, 0
        weight = layer.to_weight((rounding.grid or problem.grid).dequantize(rounding.codes))
        for inputs, targets in self.batches:
            outputs = layer.apply(weight, inputs)
            if rounding.bias_shift is not None:
                shift = rounding.bias_shift.flatten()
                outputs += shift.reshape(-1, *[1] * layer.dims)
            if problem.nonlinearity is not None:
                outputs, targets = problem.nonlinearity(outputs), problem.nonlinearity(targets)
            total += float((outputs - targets).square().sum(dtype=torch.float64))
            positions += targets.numel() // targets.shape[1 if layer.dims else -1]
        return total / positions


@final
@dataclass(frozen=True)
class Compare(RoundingSolver[Both]):
    """Solves each chosen layer with every contender; the stream goes on with the answer of `PREFIX`."""

    patterns: tuple[str, ...]
    contenders: dict[str, RoundingSolver[Any]]
    setting: dict[str, Any]
    journal: Journal
    needs: ClassVar[type] = Both
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Both], generator: torch.Generator) -> Rounding:
        both = problem.statistics
        if any(fnmatch.fnmatchcase(problem.name, pattern) for pattern in self.patterns):
            about = {**self.setting, "layer": problem.name, "shape": list(problem.weight.shape)}
            about["problem"] = both.fingerprint(problem)
            for name, solver in self.contenders.items():
                if self.journal.find({**about, "contender": name}) is None:
                    own = both.gram if solver.needs is Gram else both.samples
                    begin = time.perf_counter()
                    rounding = solver.solve(with_statistics(problem, own), torch.Generator().manual_seed(0))
                    _finish()
                    seconds = time.perf_counter() - begin + (both.seconds if solver.needs is Gram else 0.0)
                    result = {"objective": both.objective(problem, rounding), "seconds": seconds}
                    self.journal.add({**about, "contender": name, **result})
        return PREFIX.solve(with_statistics(problem, both.gram), generator)


def _finish() -> None:
    """Let an accelerator end what it was told to do, before a clock is read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def with_statistics(problem: Problem[Any], own: Statistic) -> Problem[Any]:
    """The same problem, with what one solver needs to know of the samples."""
    return dataclasses.replace(problem, statistics=own)


@final
class Journal:
    """The records, also kept in a file if one is named."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.records: list[dict[str, Any]] = []
        if file and file.exists():
            self.records = [json.loads(line) for line in file.read_text().splitlines()]

    def find(self, about: dict[str, Any]) -> dict[str, Any] | None:
        """The record with all of these entries, if there is one."""
        return next((record for record in self.records if about.items() <= record.items()), None)

    def add(self, record: dict[str, Any]) -> None:
        """Keep and print a record."""
        self.records.append(record)
        print(json.dumps(record), flush=True)
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(record) + "\n")


def table(records: list[dict[str, Any]]) -> str:
    """One row per layer and setting; then geometric means of ratios to the minibatch solver."""
    problems: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    records = sorted(records, key=lambda record: "minibatches" in record["contender"])  # what others are held to: last
    for record in records:
        key = tuple(record[name] for name in ("network", "bits", "granularity", "layer", "samples", "problem"))
        problems.setdefault(key, {})[record["contender"]] = record
    names = list(dict.fromkeys(record["contender"] for record in records))
    reference = names[-1]
    lines = [
        "| network | bits | granularity | layer | "
        + " | ".join(f"{name}, objective | s" for name in names)
        + " | "
        + " | ".join(f"{name} / {reference}" for name in names[:-1])
        + " |",
        "|---|---|---|---|" + "---|---|" * len(names) + "---|" * (len(names) - 1),
    ]
    complete = {key[:4]: runs for key, runs in problems.items() if len(runs) == len(names)}
    if not complete:
        return f"No layer has been solved by all of {', '.join(names)} yet."
    for key, runs in complete.items():
        cells = [f"{runs[name]['objective']:.5g} | {runs[name]['seconds']:.2f}" for name in names]
        ratios = [f"{runs[name]['objective'] / runs[reference]['objective']:.3f}" for name in names[:-1]]
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells + ratios)} |")
    for name in names[:-1]:
        ratios_of = [runs[name]["objective"] / runs[reference]["objective"] for runs in complete.values()]
        speed = statistics.median(runs[reference]["seconds"] / runs[name]["seconds"] for runs in complete.values())
        mean = math.exp(statistics.fmean(map(math.log, ratios_of)))
        lines.append(
            f"\n{name} against {reference}, {len(ratios_of)} problems: geometric mean of the objective's ratios "
            f"{mean:.3f}, largest {max(ratios_of):.3f}; {speed:.0f} times faster (median)."
        )
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    parser.add_argument("--granularity", nargs="+", choices=networks.GRANULARITIES, default=["per-tensor"])
    parser.add_argument("--layers", nargs="+", default=["*"], help="globs of layer names")
    parser.add_argument("--contenders", nargs="+", choices=("default", "paper", "minibatches"), help="by default all")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--iterations", type=int, default=10_000, help="of the minibatch solver")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--summary", type=Path, help="print the table of an earlier --json file and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.summary:
        print(table([json.loads(line) for line in arguments.summary.read_text().splitlines()]))
        return
    contenders: dict[str, tuple[str, RoundingSolver[Any]]] = {
        "default": ("default", rw.rounding.GramAdaRound()),
        "paper": ("paper's choices", rw.rounding.GramAdaRound(**PAPER)),
        "minibatches": (
            f"minibatches, {arguments.iterations} steps",
            rw.rounding.AdaRound(iterations=arguments.iterations),
        ),
    }
    chosen = dict(contenders[key] for key in arguments.contenders or contenders)
    task = networks.load(arguments.network, arguments.samples, arguments.device)
    journal = Journal(arguments.json)
    for bits, granularity in itertools.product(arguments.bits, arguments.granularity):
        setting = {
            "network": arguments.network,
            "samples": arguments.samples,
            "bits": bits,
            "granularity": granularity,
        }
        solver = Compare(tuple(arguments.layers), chosen, setting, journal)
        weights = rw.Weights(bits=bits, granularity=networks.GRANULARITIES[granularity])
        rw.quantize(
            task.model, task.calibration, rw.Recipe((rw.Rewrite(()), rw.Quantize(weights=weights, rounding=solver)))
        )
    print(table(journal.records))


if __name__ == "__main__":
    main()
