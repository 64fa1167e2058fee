"""What the local loss gives away: one layer rounded by the Hessian of the task loss, and by its own output's error.

    python benchmarks/task_loss.py --network resnet20 --layer conv1 --bits 4 3 2 --samples 256 --exact-samples 32

Only that layer is quantized, per tensor, on the grid of least weight error; all else stays in float. Table 2 in
papers/adaround_2020 has accuracies over seeds; here is what is not there: the costs, several bit-widths, and the exact
Hessian beside the Gauss–Newton one. Labels are the float network's own classes. Costs are dᵀ H d (Eq. 13) for the
Gauss–Newton H, as shares of nearest rounding's.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import networks
import torch
from torch import Tensor

import roundwise as rw
from roundwise.reproduction import taskloss


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--layer", default="conv1")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument(
        "--exact-samples", type=int, default=32, help="for the exact Hessian, which takes longer; 0: none"
    )
    parser.add_argument("--images", type=int, default=2000, help="to evaluate on")
    options = parser.parse_args()
    task = networks.load(options.network, options.samples)
    some = torch.arange(options.images) * len(task.labels) // options.images  # evenly: they may be sorted by class
    task = dataclasses.replace(task, images=task.images[some], labels=task.labels[some])

    hessians: dict[str, taskloss.TaskHessian] = {}
    kinds: dict[str, tuple[taskloss.GaussNewton | taskloss.ExactHessian, int]] = {
        "Gauss-Newton": (taskloss.GaussNewton(), options.samples),
        "exact": (taskloss.ExactHessian(), options.exact_samples),
    }
    for name, (curvature, count) in kinds.items():
        if count:
            begin, images = time.process_time(), task.calibration[:count]
            hessians[name] = taskloss.task_hessian(
                task.model, options.layer, images, taskloss.PredictedClasses(), curvature=curvature
            )
            print(f"{name} Hessian of {count} images: {time.process_time() - begin:.0f} s", flush=True)
    print(f"float: {task.accuracy(task.model):.2f} % on {options.images} images", flush=True)

    judge = hessians["Gauss-Newton"]
    for bits in options.bits:
        weights = rw.Weights(bits=bits, granularity=rw.PerTensor())
        grid = judge.grid(weights)
        nearest = judge.cost(grid.fake_quantize(judge.weight))
        contenders: dict[str, rw.rounding.RoundingSolver[Any]] = {
            "nearest": rw.rounding.Nearest(),
            "local MSE, CEM": rw.rounding.CrossEntropyMethod(),
            "AdaRound, floor or ceiling": rw.rounding.GramAdaRound(any_code=False, free_bias=False, fit_scale=False),
        }
        for name, hessian in hessians.items():
            contenders[f"{name}, CEM"] = rw.rounding.Given(taskloss.solve_qubo(hessian, grid))
            contenders[f"{name}, tabu"] = rw.rounding.Given(taskloss.solve_qubo(hessian, grid, taskloss.TABU))
        for name, solver in contenders.items():
            one = dataclasses.replace(weights, rounding=solver)
            quantized = rw.quantize(
                task.model, task.calibration, rw.Recipe((rw.Quantize(overrides={"*": None, options.layer: one}),))
            )
            cost = judge.cost(_weight_of(quantized, judge, options.layer)) / nearest
            accuracy = task.accuracy(quantized)
            print(f"{bits} bits  {name:28} accuracy {accuracy:6.2f}  cost {cost:6.3f}", flush=True)


def _weight_of(quantized: rw.Model, judge: taskloss.TaskHessian, layer: str) -> Tensor:
    """The layer's weights on its codes, as a matrix (of a layer whose matrix is its weight, reshaped)."""
    weight = quantized.weights[layer].dequantize()
    return weight.reshape(judge.weight.shape)


if __name__ == "__main__":
    with torch.no_grad():
        main()
