"""The plan against what a process really occupies: activations held, and memory that belongs to nobody else.

    python benchmarks/memory.py
    python benchmarks/memory.py --network mobilenet_v2 --samples 512 --budgets 16384 --solver gram-adaround

A stack of residual blocks, or a trained network, is quantized with several memory budgets. Measured is anonymous memory
(what the operating system cannot drop or write back by itself, so without the memory-mapped files), sampled every few
milliseconds, beyond what there was when the plan was announced. It holds the activations in memory, the batch at work,
and a few buffers of PyTorch's. With glibc it also holds what was freed and not yet given back, which can be as much
again; MALLOC_MMAP_THRESHOLD_=65536 in the environment shows the figures without. Linux only: it reads
/proc/self/status.
"""

from __future__ import annotations

import argparse
import dataclasses
import threading
from pathlib import Path
from typing import Any, Self

import networks
import torch
from depth import Block
from torch import nn

import roundwise as rw
from roundwise.events import Plan, Planned
from roundwise.methods.rounding import ROUNDING_SOLVERS

MIB = 1 << 20


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Highest:
    """The most anonymous memory while a block of code runs, sampled."""

    def __enter__(self) -> Self:
        self.bytes, self._done = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.003):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def run(model: nn.Module, samples: torch.Tensor, recipe: rw.Recipe) -> tuple[Plan, int, int]:
    """The plan, the activations held at the most, and the memory occupied at the most beyond that before the pass."""
    plans: list[Plan] = []
    before: list[int] = []

    def listen(event: Any) -> None:
        if isinstance(event, Planned):
            plans.append(event.plan)
            before.append(anonymous())

    with Highest() as highest:
        report = rw.quantize(model, samples, recipe, progress=listen).report
    return plans[0], report.peak_activation_bytes, highest.bytes - before[0]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--budgets", nargs="+", type=int, default=[4096, 192, 64, 0], metavar="MIB")
    parser.add_argument("--network", help="a trained one, as in accuracy.py, instead of the stack")
    parser.add_argument("--solver", choices=list(ROUNDING_SOLVERS), default="ceil")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.network is None:
        model: nn.Module = nn.Sequential(*(Block(arguments.width) for _ in range(arguments.blocks))).eval()
        samples = torch.randn(arguments.samples, arguments.width, 32, 32)
    else:
        task = networks.load(arguments.network, arguments.samples)
        model, samples = task.model, task.calibration
    recipe = rw.Recipe((rw.Rewrite(()), rw.Quantize(rounding=ROUNDING_SOLVERS[arguments.solver]())))
    # So that nothing is loaded while memory is measured.
    warm = dataclasses.replace(recipe.with_settings(rw.Quantize, rounding=rw.rounding.Ceil()), memory_budget=1 << 40)
    run(model, samples[:32], warm)
    print("| budget, MiB | planned, MiB | of it in memory | for the batch at work | held, MiB | occupied, MiB |")
    print("|---|---|---|---|---|---|")
    for budget in arguments.budgets:
        plan, held, occupied = run(model, samples, dataclasses.replace(recipe, memory_budget=budget * MIB))
        print(
            f"| {budget} | {plan.widest_bytes / MIB:.0f} | {(plan.widest_bytes - plan.spilled_bytes) / MIB:.0f} "
            f"| {plan.working_bytes / MIB:.0f} | {held / MIB:.0f} | {occupied / MIB:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
