"""Roundwise itself, and rounding to nearest on the same grids."""

from __future__ import annotations

from job import CannotError, Job, Result, run
from torch import Tensor, nn

import roundwise as rw
from roundwise.methods.rounding import ROUNDING_SOLVERS


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Result:
    """With the solver that the job names; every other setting is the default."""
    settings = dict(job.settings)
    name = settings.pop("solver")
    if name not in ROUNDING_SOLVERS:
        raise CannotError(f"Roundwise has no solver {name!r}; it has {', '.join(ROUNDING_SOLVERS)}.")
    solver = ROUNDING_SOLVERS[name](**settings)
    granularity = rw.PerChannel() if job.per_channel else rw.PerTensor()
    weights = rw.Weights(bits=job.bits, granularity=granularity)
    recipe = rw.Recipe((rw.Rewrite(()), rw.Quantize(weights=weights, rounding=solver)), seed=job.seed)
    return Result(rw.quantize(model, calibration, recipe), [f"{solver}; ranges: {weights.ranges}"])


if __name__ == "__main__":
    run(quantize, "roundwise")
