"""Where sources differ about AdaRound, measured: Adam's step size, and what the norm of the loss is taken over.

    python benchmarks/adaround_settings.py --iterations 1000 --seeds 1

The paper writes ‖·‖²_F for the loss (Eq. 25) and names neither λ nor the step size beyond "Adam with default
hyper-parameters". Code by its authors sums the squared error over output channels and takes the mean over samples and
positions; others take the mean over everything, or the plain sum. Adam does not see a factor on the whole loss, so only
the ratio to the regulariser matters, and each reading is the same procedure with another λ:

    sum over channels, mean over the rest     λ
    mean over everything                      λ · channels
    sum over everything                       λ / (batch · positions)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import accuracy
import torch

import roundwise as rw
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.statistics import Samples


@final
@dataclass(frozen=True)
class WithNorm(RoundingSolver[Samples]):
    """`AdaRound` under another reading of the norm."""

    base: rw.rounding.AdaRound
    norm: str
    needs: ClassVar[type] = Samples

    @property
    def traits(self) -> Traits:
        return self.base.traits

    def solve(self, problem: Problem[Samples], generator: torch.Generator) -> Rounding:
        """Solve with λ rescaled so that it weighs as it would under this norm."""
        samples = problem.statistics
        factor = 1.0
        if self.norm == "mean":
            factor = float(problem.weight.shape[0] * problem.weight.shape[1])
        elif self.norm == "sum":
            _, targets = samples.draw(self.base.batch_size, torch.Generator().manual_seed(0))
            factor = targets.shape[1] / targets.numel()
        solver = dataclasses.replace(self.base, regularization=self.base.regularization * factor)
        return solver.solve(problem, generator)


def main() -> None:
    """Run every combination on the same network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--learning-rate", nargs="+", type=float, default=[1e-2, 1e-3])
    parser.add_argument("--norm", nargs="+", default=["channels", "mean", "sum"])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, required=True, help="one line per finished run is appended here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    done = []
    for rate in arguments.learning_rate:
        for norm in arguments.norm:
            base = rw.rounding.AdaRound(iterations=arguments.iterations, learning_rate=rate)
            done += accuracy.measure(
                arguments.network,
                rw.Recipe(
                    (rw.Rewrite(()), rw.Quantize(weights=rw.Weights(bits=arguments.bits, granularity=rw.PerTensor())))
                ),
                {f"{arguments.iterations} steps, step size {rate:g}, norm: {norm}": WithNorm(base, norm)},
                seeds=range(arguments.seeds),
                samples=arguments.samples,
                journal=arguments.json,
            )
    print(accuracy.table(done))
    print(json.dumps({"torch": torch.__version__, "threads": arguments.threads}))


if __name__ == "__main__":
    main()
