"""Roundwise and its peers side by side: same network, same calibration images, same bits and granularity, one run.

    python benchmarks/side_by_side.py --network resnet20 --bits 4 3 --granularity per-tensor --json results.jsonl

Weights only, symmetric, batch-norm folded; activations stay in float. Each peer runs in an environment of its own,
which is made under benchmarks/.venvs the first time (Linux without a GPU: let pip find PyTorch's CPU wheels, for
instance with PIP_EXTRA_INDEX_URL, or it takes the much larger CUDA build). Each run is a process of its own, so that
its peak memory is its own. What comes back is the weights, and one and the same code measures them all in the float
network.

A peer that cannot be installed, cannot do what is asked or fails has a row that says so. `--json FILE` appends each
finished run as a line; started again with the same file, the benchmark leaves out what is there, but tries again what
failed. `--summary FILE` prints the table of such a file. `--quick` takes few steps where a method learns; such rows
say it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from torch import Tensor, nn

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parent / ".venvs"
OURS = "roundwise"
NETWORKS = ("resnet20", "mobilenet_v1_075", "mobilenet_v2")
BATCH = 32

sys.path.append(str(PEERS))
from job import EXIT_CANNOT, Job, folded, load_tensors  # noqa: E402  what the peers' processes share with this one

Record = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        peer: whose it is: the script `peers/with_<peer>.py`, the requirements `peers/<peer>.txt`.
        settings: what its script is told.
        quick: settings that are different with `--quick`.
    """

    peer: str
    settings: Record = field(default_factory=dict)
    quick: Record = field(default_factory=dict)


CONTESTANTS = {
    OURS: Contestant("roundwise", {"solver": "adaround"}),
    "roundwise-sgd": Contestant("roundwise", {"solver": "adaround", "iterations": 10_000}, {"iterations": 500}),
    "nearest": Contestant("roundwise", {"solver": "nearest"}),
    "aimet-adaround": Contestant("aimet", {}, {"iterations": 300}),
    "brevitas-gptq": Contestant("brevitas", {"method": "gptq", "ranges": "stats"}),
    "brevitas-gptq-mse": Contestant("brevitas", {"method": "gptq", "ranges": "mse"}),
    "brevitas-learned": Contestant(
        "brevitas",
        {"method": "learned-round", "ranges": "mse", "iterations": 1_000, "batch_size": 1},
        {"iterations": 300},
    ),
    "nncf": Contestant("nncf"),
    "torchao": Contestant("torchao"),
}

LEGEND = """\
Accuracy: top-1 on all evaluation images, of the float network with the method's weights and biases put into it; mean ±
standard deviation over seeds. Layer error: Σ‖y − ŷ‖²/Σ‖y‖² at each layer's output on the calibration images, y in the
float network and ŷ in the quantized one; geometric mean over layers. Output error: the same at the network's output.
Seconds: from float network and images in memory to quantized network, without imports, loading and installing. Peak: of
the process's memory until the quantization ended, images and imported libraries included; in brackets, without what it
held before the quantization began."""


# ------------------------------------------------------------------------------------------------- running a contestant


def environment(peer: str) -> Path:
    """The Python to run a peer with; its environment is made and filled when it is not there as required.

    Raises:
        RuntimeError: pip failed.
    """
    if peer == "roundwise":
        return Path(sys.executable)
    folder, requirements = ENVIRONMENTS / peer, PEERS / f"{peer}.txt"
    stamp = folder / "installed.txt"
    python = folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == requirements.read_text():
        return python
    say(f"installing {peer} into {folder}")
    if not python.exists():
        venv.create(folder, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"not installed: {reason(done.stderr)}")
    stamp.write_text(requirements.read_text())
    return python


def reason(text: str) -> str:
    """What a failed program's messages come to: the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:400]


def execute(job: Job, peer: str, time_limit: float | None) -> Record:
    """Run one job in a process of its own.

    Returns:
        Its measurements; or `cannot` or `failed`, with the reason.
    """
    try:
        python = environment(peer)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        return {"failed": str(error)}
    threads = str(job.threads)
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": "",
        "NNCF_EXTENSION_LOAD_TIMEOUT": "0",  # it compiles C++ the first time, which takes more than the minute it waits
    }
    command = [str(python), str(PEERS / f"with_{peer}.py"), json.dumps(dataclasses.asdict(job))]
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, check=False, timeout=time_limit, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after the time limit of {time_limit:.0f} s"}
    if done.returncode == EXIT_CANNOT:
        return {"cannot": done.stderr.rpartition("cannot: ")[2].strip()}
    if done.returncode < 0:
        return {"failed": f"ended by signal {-done.returncode}; 9 is what systems send that are out of memory"}
    if done.returncode:
        return {"failed": reason(done.stderr)}
    measured: Record = json.loads(Path(job.result).with_suffix(".json").read_text())
    return measured


# ------------------------------------------------------------------------------------------------ measuring its weights


def judge(task: networks.Task, tensors: dict[str, Tensor], per_channel: bool) -> Record:
    """What weights are worth in the float network, measured alike for everyone."""
    reference, network = folded(task.model), folded(task.model)
    network.load_state_dict({**network.state_dict(), **tensors})
    right = task.right(network)
    errors, same_input, output = layer_errors(
        reference, network, task.calibration, [n for n in tensors if is_weight(n)]
    )
    scales = [tensor.flatten(1) if per_channel else tensor.view(1, -1) for n, tensor in tensors.items() if is_weight(n)]
    return {
        "accuracy": networks.percent(right),
        "right": networks.packed(right),
        "layer_error": geometric_mean(errors.values()),
        "layer_error_same_input": geometric_mean(same_input.values()),
        "output_error": output,
        "layer_errors": errors,
        "levels": max(row.unique().numel() for rows in scales for row in rows),
    }


def is_weight(name: str) -> bool:
    """Whether a tensor of this name is a weight; the others are biases."""
    return name.endswith(".weight")


def geometric_mean(values: Iterable[float]) -> float:
    """Zeros count as 1e-12, which no layer with an error reaches."""
    return math.exp(statistics.fmean(math.log(max(value, 1e-12)) for value in values))


@torch.no_grad()
def layer_errors(
    reference: nn.Module, network: nn.Module, images: Tensor, weights: Iterable[str]
) -> tuple[dict[str, float], dict[str, float], float]:
    """Relative squared errors of layers and of the output.

    Returns:
        By layer against the float network's outputs; by layer against float weights on the quantized network's inputs;
        at the network's output.
    """
    names = [name.removesuffix(".weight") for name in weights]
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in names}
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[name] = output

        return hook

    def compare(name: str) -> Any:
        layer = reference.get_submodule(name)

        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            there, here = outputs.pop(name), layer.forward(inputs[0])  # forward: no hook
            sums[name] += torch.stack([squares(output - there), squares(there), squares(output - here), squares(here)])

        return hook

    for name in names:
        reference.get_submodule(name).register_forward_hook(keep(name))
        network.get_submodule(name).register_forward_hook(compare(name))
    error, size = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for batch in images.split(BATCH):
        expected = reference(batch)
        error, size = error + squares(network(batch) - expected), size + squares(expected)
    return (
        {name: float(sums[name][0] / sums[name][1]) for name in names},
        {name: float(sums[name][2] / sums[name][3]) for name in names},
        float(error / size),
    )


def squares(tensor: Tensor) -> Tensor:
    """Their sum, in double precision."""
    return tensor.square().sum(dtype=torch.float64)


# -------------------------------------------------------------------------------------------------------- the benchmark


@contextmanager
def files(task: networks.Task) -> Iterator[Path]:
    """A folder with the task's images, for processes that do not have this one's libraries."""
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as name:
        folder = Path(name)
        for file, tensor in (("calibration", task.calibration), ("evaluation", task.images), ("labels", task.labels)):
            np.save(folder / f"{file}.npy", tensor.numpy())
        yield folder


def identity(record: Record) -> tuple[Any, ...]:
    """What makes two records ones of the same run."""
    names = ("network", "samples", "bits", "granularity", "contestant", "seed", "threads")
    return (*(record[name] for name in names), json.dumps(record["settings"], sort_keys=True))


def finished(journal: Path | None) -> list[Record]:
    """The records of a file; of several of the same run, the last."""
    if journal is None or not journal.is_file():
        return []
    records = [json.loads(line) for line in journal.read_text().splitlines() if line]
    return list({identity(record): record for record in records}.values())


def benchmark(arguments: argparse.Namespace) -> list[Record]:
    """All runs that the command line asks for, in the table's order; those that the journal has are not run again."""
    known = {identity(record): record for record in finished(arguments.json) if "failed" not in record}
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    records = []
    for network in arguments.network:
        task = networks.load(network, arguments.samples)
        with files(task) as folder:
            for bits, granularity, contestant, seed in itertools.product(
                arguments.bits, arguments.granularity, chosen(arguments), seeds
            ):
                record = {
                    "network": network,
                    "samples": len(task.calibration),
                    "bits": bits,
                    "granularity": granularity,
                    "contestant": contestant,
                    "settings": settings(contestant, arguments),
                    "quick": arguments.quick and bool(CONTESTANTS[contestant].quick),
                    "seed": seed,
                    "threads": arguments.threads,
                }
                if identity(record) not in known:
                    record |= one_run(record, task, folder, arguments.time_limit)
                    if arguments.json:
                        with arguments.json.open("a") as file:
                            file.write(json.dumps(record) + "\n")
                    known[identity(record)] = record
                records.append(known[identity(record)])
    return records


def chosen(arguments: argparse.Namespace) -> list[str]:
    """Ours, and those that `--peers` names by their row or by their library."""
    names = [name for name, contestant in CONTESTANTS.items() if {name, contestant.peer} & set(arguments.peers)]
    return [OURS, *(name for name in names if name != OURS)]


def settings(contestant: str, arguments: argparse.Namespace) -> Record:
    """What the contestant's script is told."""
    if contestant == OURS:
        return solver_settings(arguments.ours)
    entry = CONTESTANTS[contestant]
    if not arguments.quick or not entry.quick:
        return entry.settings
    return {**entry.settings, **entry.quick, **({"iterations": arguments.steps} if arguments.steps else {})}


def solver_settings(text: str) -> Record:
    """`name` or `name:field=value,field=value`, with values as JSON."""
    name, _, fields = text.partition(":")
    pairs = dict(pair.split("=", 1) for pair in fields.split(",") if pair)
    return {"solver": name, **{key: json.loads(value) for key, value in pairs.items()}}


def one_run(record: Record, task: networks.Task, folder: Path, time_limit: float | None) -> Record:
    """Let one contestant quantize, and measure what it gives."""
    title = " ".join(str(record[name]) for name in ("network", "bits", "granularity", "contestant", "seed"))
    say(f"{title} …")
    job = Job(
        contestant=record["contestant"],
        settings=record["settings"],
        network=record["network"],
        networks=str((networks.ROOT / "models" / "networks.py").resolve()),
        images=str(folder),
        bits=record["bits"],
        granularity=record["granularity"],
        seed=record["seed"],
        threads=record["threads"],
        result=str(folder / "weights.safetensors"),
    )
    outcome = execute(job, CONTESTANTS[record["contestant"]].peer, time_limit)
    if "seconds" in outcome:
        outcome |= judge(task, load_tensors(Path(job.result)), job.per_channel)
        outcome["notes"] += remarks(outcome, job.bits)
        say(f"{title}: {outcome['accuracy']:.2f} % in {outcome['seconds']:.1f} s")
    else:
        say(f"{title}: {outcome}")
    return {**outcome, "float_accuracy": task.accuracy(task.model), "machine": machine()}


def remarks(outcome: Record, bits: int) -> list[str]:
    """What does not fit: weights off the grid, or a library's own network that does something else."""
    found = []
    if outcome["levels"] > 2**bits:
        found.append(f"NOT {bits} bits: up to {outcome['levels']} different weights with one scale")
    if abs(outcome["accuracy_in_place"] - outcome["accuracy"]) > 0.5:
        found.append(f"the library's own quantized network has {outcome['accuracy_in_place']:.2f} %")
    return found


def machine() -> str:
    """The processor's name where the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def say(text: str) -> None:
    """Progress to the terminal, apart from the table."""
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------------------ the table


def table(records: list[Record]) -> str:
    """Records as Markdown: a table with one row per setting and contestant, what it means, notes, versions."""
    settings: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Record]]] = {}
    for record in records:
        setting = tuple(record[name] for name in ("network", "samples", "bits", "granularity", "threads"))
        row = (record["contestant"], json.dumps(record["settings"], sort_keys=True))
        settings.setdefault(setting, {}).setdefault(row, []).append(record)
    lines = [
        "| network | images | bits | granularity | method | accuracy | layer error | output error | s | × ours "
        "| peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (network, samples, bits, granularity, _threads), rows in settings.items():
        start = f"| {network} | {samples} | {bits} | {granularity} "
        runs = next(iter(rows.values()))
        lines.append(f"{start}| float | {runs[0]['float_accuracy']:.2f} | | | | | |")
        ours = [run["seconds"] for runs in rows.values() for run in runs if is_ours(run)]
        lines += [f"{start}| {name_of(runs[0])} {cells(runs, ours)} |" for runs in rows.values()]
    return "\n".join([*lines, "", LEGEND, "", *notes(records), "", *versions(records)])


def is_ours(record: Record) -> bool:
    """Whether it is a run of the solver that the others' times are compared with."""
    return record["contestant"] == OURS and "seconds" in record


def name_of(record: Record) -> str:
    """A row's name; a run with fewer steps than the method's default says so."""
    if record["contestant"] == OURS:
        fields = {name: value for name, value in record["settings"].items() if name != "solver"}
        return " ".join([f"**roundwise {record['settings']['solver']}**", *(f"{k}={v}" for k, v in fields.items())])
    if record["quick"]:
        return f"{record['contestant']} (quick: {record['settings']['iterations']} steps only)"
    return str(record["contestant"])


def cells(runs: list[Record], ours: list[float]) -> str:
    """A row's figures over its seeds, or why there are none."""
    done = [run for run in runs if "seconds" in run]
    if not done:
        word = "cannot" if "cannot" in runs[-1] else "failed"
        return f"| {word}: {runs[-1][word].replace('|', '/')} | | | | |"
    accuracies = [run["accuracy"] for run in done]
    spread = f" ± {statistics.stdev(accuracies):.2f} ({len(done)} seeds)" if len(done) > 1 else ""
    seconds = statistics.median(run["seconds"] for run in done)
    ratio = f"{seconds / statistics.median(ours):.2f}" if ours else ""
    layer, output = (statistics.fmean(run[error] for run in done) for error in ("layer_error", "output_error"))
    peak = max(run["peak_mib"] for run in done)
    above = max(run["peak_mib"] - run["peak_before_mib"] for run in done)
    return (
        f"| {statistics.fmean(accuracies):.2f}{spread} | {layer:.5f} | {output:.5f} | {seconds:.1f} | {ratio} "
        f"| {peak:.0f} ({above:.0f})"
    )


def notes(records: list[Record]) -> list[str]:
    """What a reader must know about each contestant; what is true of some runs only says of which."""
    found: dict[str, dict[str, list[str]]] = {}
    runs: dict[str, set[str]] = {}
    for record in records:
        place = f"{record['network']}, {record['bits']} bits, {record['granularity']}"
        runs.setdefault(name_of(record), set()).add(place)
        for note in record.get("notes", []):
            found.setdefault(name_of(record), {}).setdefault(note, []).append(place)
    return [
        f"- {name}: "
        + ". ".join(
            note if set(places) == runs[name] else f"{note} ({'; '.join(dict.fromkeys(places))})"
            for note, places in texts.items()
        )
        + "."
        for name, texts in found.items()
    ]


def versions(records: list[Record]) -> list[str]:
    """A line for each library, and one for the machines."""
    lines = {
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()): None
        for record in records
        if "versions" in record
    }
    machines = {f"{record['machine']}; {record['threads']} threads": None for record in records}
    return [*(f"- {line}" for line in (*lines, *machines))]


def main() -> None:
    """Parse the command line, run, print the table."""
    peers = sorted({name for key, entry in CONTESTANTS.items() for name in (key, entry.peer)})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=["resnet20"], choices=NETWORKS)
    parser.add_argument("--bits", nargs="+", type=int, default=[4])
    parser.add_argument("--granularity", nargs="+", choices=networks.GRANULARITIES, default=["per-tensor"])
    parser.add_argument("--samples", type=int, default=1024, help="calibration images (ImageNet's networks have 1000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="+", default=peers, choices=peers, metavar="NAME", help=", ".join(peers))
    parser.add_argument("--ours", default="adaround", help="solver in our own row, as name or name:field=value,…")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that everything runs")
    parser.add_argument("--steps", type=int, help="with --quick: how many; times are linear in them")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for each run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="print the table of a --json file and stop")
    arguments = parser.parse_args()
    if arguments.summary:
        if not arguments.summary.is_file():
            parser.error(f"--summary: there is no file {arguments.summary}")
        print(table(finished(arguments.summary)))
        return
    if arguments.steps and not arguments.quick:
        parser.error("--steps is for --quick")
    torch.set_num_threads(arguments.threads)
    print(table(benchmark(arguments)))


if __name__ == "__main__":
    main()
