"""What a process occupies beyond its plan while it reads ten times its memory budget: `python benchmarks/resident.py`.

Each case runs in a process of its own: a first run warms up, then samples of ten budgets are streamed through a
second one. Measured is the peak of resident memory (VmHWM: anonymous memory and mapped files) beyond the resident
memory at the call. The plan is what may stay in memory (the budget), and the working memory of a batch. The script
ends with code 1 if a case exceeds its plan by more than 64 MiB. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import roundwise as rw
from roundwise.events import Event, Plan, Planned

MIB = 1 << 20
ALLOWED = 64 * MIB
CASES = {
    "equal batches, 16 MiB": (16, 64, "nearest"),
    "odd batches, 16 MiB": (16, 0, "nearest"),
    "odd batches, 64 MiB": (64, 0, "nearest"),
    "default method, 16 MiB": (16, 64, "gram-adaround"),
    "quantized activations, 16 MiB": (16, 0, "activations"),
}
"""Budget in MiB, samples in a batch (0: another number in each batch), and the recipe."""


def memory(entry: str) -> int:
    """Bytes of this process, from /proc/self/status."""
    (line,) = (it for it in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if it.startswith(entry))
    return int(line.split()[1]) * 1024


class Samples:
    """Batches of random images, made while they are read."""

    def __init__(self, size: int, batch: int) -> None:
        self.size, self.batch = size, batch

    def __iter__(self) -> Iterator[Tensor]:
        generator, made, number = torch.Generator().manual_seed(0), 0, 0
        while made < self.size:
            count = self.batch or 1 + number * 37 % 97
            yield torch.randn(count, 3, 32, 32, generator=generator)
            made, number = made + count * 12288, number + 1


def recipe(name: str, budget: int) -> rw.Recipe:
    """One of the recipes."""
    stage: Any = {
        "nearest": rw.Quantize(rounding=rw.rounding.Nearest()),
        "gram-adaround": rw.Quantize(),
        "activations": rw.Quantize(rounding=rw.rounding.Nearest(), activations=rw.Activations(8)),
    }[name]
    return rw.Recipe((rw.Rewrite(), stage), memory_budget=budget)


def measure(name: str) -> tuple[int, int]:
    """Bytes of the plan, and of memory that was occupied."""
    budget, batch, method = CASES[name]
    budget *= MIB
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2)).eval()
    rw.quantize(network, Samples(MIB, batch), recipe(method, budget))
    plans: list[Plan] = []

    def note(event: Event) -> None:
        if isinstance(event, Planned):
            plans.append(event.plan)

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak so far
    before = memory("VmRSS")
    rw.quantize(network, Samples(10 * budget, batch), recipe(method, budget), progress=note)
    occupied = memory("VmHWM") - before
    return max(min(it.widest_bytes, budget) + it.working_bytes for it in plans), occupied


def main() -> None:
    """Parse the command line and run each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="only this one, in this process")
    chosen = parser.parse_args().case
    if chosen is not None:
        plan, occupied = measure(chosen)
        print(f"{chosen}: plan {plan / MIB:.0f} MiB, occupied {occupied / MIB:.0f} MiB")
        sys.exit(occupied - plan > ALLOWED)
    codes = [subprocess.run([sys.executable, __file__, "--case", name], check=False).returncode for name in CASES]
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
