"""Cost against depth: networks of n equal residual blocks, so that twice the blocks should be twice the work.

    python benchmarks/depth.py                       # 9 blocks (as many as ResNet-20 has) to 56
    python benchmarks/depth.py --blocks 9 18 --samples 64

For each depth and solver: processor seconds of the pass, in all and per block; the most activation bytes that were
ever held, planned and measured; and how often the pass applied a layer to each batch, counted. Beside it stands the
arithmetic of the usual way, which for each layer runs the network from its start to that layer, in float and quantized:
L (L + 1) layer runs for L layers, where the pass needs 2 L, and L more where it measures nearest rounding for the
report. (What a solver runs by itself is the same for both, and not counted.)
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import roundwise as rw
from roundwise.events import Plan, Planned

SOLVERS: dict[str, rw.rounding.RoundingSolver[Any]] = {
    "nearest": rw.rounding.Nearest(),
    "adaround, 20 steps": rw.rounding.AdaRound(iterations=20),
}


class Block(nn.Module):
    """Two convolutions and a shortcut, as in a ResNet for CIFAR."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        for conv in (self.conv1, self.conv2):  # keeps activations of one size, however deep
            nn.init.normal_(conv.weight, std=0.3 / (3 * width**0.5))

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv1(x).relu()
        outer: Tensor = self.conv2(inner)
        return (x + outer).relu()


class Convolutions(TorchDispatchMode):
    """Counts convolutions."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.convolution
        return func(*args, **(kwargs or {}))


def measure(blocks: int, solver: rw.rounding.RoundingSolver[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One run, timed; and a second, small one to count."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(arguments.width) for _ in range(blocks))).eval()
    samples = torch.randn(arguments.samples, arguments.width, 32, 32)
    recipe = rw.Recipe((rw.Quantize(weights=rw.Weights(bits=4), rounding=solver),), memory_budget=1 << 40)
    plans: list[Plan] = []
    started: list[float] = []

    def listen(event: Any) -> None:
        if isinstance(event, Planned):
            plans.append(event.plan)
            started.append(time.process_time())

    report = rw.quantize(model, samples, recipe, progress=listen).report
    seconds = time.process_time() - started[0]

    starts: list[int] = []
    quick = rw.Recipe(
        (
            rw.Quantize(
                weights=rw.Weights(bits=4),
                rounding=solver if isinstance(solver, rw.rounding.Nearest) else rw.rounding.Ceil(),
            ),
        )
    )
    with Convolutions() as convolutions:  # type: ignore[no-untyped-call]  # PyTorch wrote no types there
        rw.quantize(model, samples[:2], quick, progress=lambda _: starts.append(convolutions.count))
    return {
        "layers": len(report.layers),
        "pass": seconds,
        "capture": report.seconds["capture"] + report.seconds["rewrite"],
        "planned": plans[0].widest_bytes,
        "held": report.peak_activation_bytes,
        "runs": convolutions.count - starts[0],
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", nargs="+", type=int, default=[9, 18, 28, 56])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} threads, PyTorch {torch.__version__}; "
        f"{arguments.samples} samples, width {arguments.width}, 32 × 32\n"
    )
    columns = (
        "solver",
        "blocks",
        "layers",
        "pass, s",
        "per block, s",
        "against the first",
        "held, MiB",
        "planned, MiB",
        "layer runs",
        "from the start each time",
        "capture, s",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    measure(
        arguments.blocks[0], rw.rounding.AdaRound(iterations=1), arguments
    )  # so that nothing is loaded while time is taken
    for name, solver in SOLVERS.items():
        first = None
        for blocks in arguments.blocks:
            result = measure(blocks, solver, arguments)
            per_block = result["pass"] / blocks
            first = first or per_block
            layers = result["layers"]
            print(
                f"| {name} | {blocks} | {layers} | {result['pass']:.2f} | {per_block:.3f} | {per_block / first:.2f} "
                f"| {result['held'] / 2**20:.1f} | {result['planned'] / 2**20:.1f} | {result['runs']} "
                f"| {layers * (layers + 1)} | {result['capture']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
