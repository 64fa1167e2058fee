"""Where the time goes: seconds by stage, and the layers that took most, for a network of random weights.

    python benchmarks/stages.py --network resnet50 --samples 1024 --device cuda
    python benchmarks/stages.py --network mobilenet_v2 --samples 64 --threads 2 --profile

Any classifier of torchvision; the weights are random, since only time is asked for, and the images are numbers of a
normal distribution. Stages are the report's: `capture` is torch.export and the normal form; `forward` the network's
operations in both streams, the collecting of statistics and the measuring of errors; `ranges` and `rounding` the
methods' own. `--profile` prints what the processor spent its time on.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from contextlib import nullcontext

import networks
import torch
from torch import Tensor, nn

import roundwise as rw
from roundwise.methods.rounding import ROUNDING_SOLVERS


def build(network: str) -> nn.Module:
    """A torchvision classifier as it is before training."""
    if not torch.cuda.is_available():  # torchvision looks for these operators, which CPU wheels do not have
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(network, weights=None)
    return model.eval()


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50", help="a classifier of torchvision")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, help="images at a time")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--granularity", choices=networks.GRANULARITIES, default="per-channel")
    parser.add_argument("--solver", choices=list(ROUNDING_SOLVERS), default="adaround")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=1, help="runs; the first one also starts the device up")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build(arguments.network).to(arguments.device)
    images = torch.randn(arguments.samples, 3, arguments.size, arguments.size)
    recipe = rw.Recipe(
        (
            rw.Rewrite(()),
            rw.Quantize(
                weights=rw.Weights(bits=arguments.bits, granularity=networks.GRANULARITIES[arguments.granularity]),
                rounding=ROUNDING_SOLVERS[arguments.solver](),
            ),
        ),
        batch_size=arguments.batch_size,
    )
    hardware = networks.device_name(arguments.device)
    print(f"{arguments.network}, {arguments.samples} images, {hardware}, PyTorch {torch.__version__}")
    for _ in range(arguments.repeat - 1):
        timed(model, images, recipe, arguments.device)
    profile = cProfile.Profile()
    with profile if arguments.profile else nullcontext():
        report = timed(model, images, recipe, arguments.device)
    slowest = sorted(report.layers, key=lambda layer: -layer.seconds)[:5]
    for layer in slowest:
        print(f"  {layer.name} {layer.shape}: {layer.seconds:.2f} s")
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def timed(model: nn.Module, images: Tensor, recipe: rw.Recipe, device: torch.device) -> rw.Report:
    """Quantize once, and print where the time went."""
    begin = time.perf_counter()
    report = rw.quantize(model, images, recipe).report
    seconds = time.perf_counter() - begin
    stages = ", ".join(f"{stage} {took:.1f}" for stage, took in report.seconds.items())
    peak = f"; peak on the device {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" * (device.type == "cuda")
    print(f"{seconds:.1f} s: {stages}{peak}", flush=True)
    return report


if __name__ == "__main__":
    main()
