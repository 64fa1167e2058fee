"""The tables on the trained networks that benchmarks measure on, where ImageNet is not at hand.

    python papers/adaround_2020/on_real_networks.py table5 --network resnet20 --bits 3 --iterations 500 --seeds 2

`roundwise reproduce adaround` does the same for any network and data. A table's page goes to papers/adaround_2020.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch
from torch import nn

from roundwise.grid import PerChannel, PerTensor
from roundwise.reproduction import PAPERS, Settings, Study, page, run

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "benchmarks"))
import networks  # noqa: E402  where the networks and images are

ADAROUND = PAPERS["adaround"]


def main() -> None:
    """Parse the command line, run, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=list(ADAROUND))
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--journal", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = networks.load(arguments.network, arguments.samples)
    settings = Settings(
        bits=arguments.bits,
        granularity=PerChannel() if arguments.per_channel else PerTensor(),
        iterations=arguments.iterations,
        seeds=arguments.seeds,
    )

    def score(module: nn.Module) -> float:
        return task.accuracy(module)

    name = f"{arguments.network}, {len(task.labels)} test images, {len(task.calibration)} calibration images"
    study = Study(task.model, task.calibration, score, name)
    for table in arguments.tables:
        results = run(study, ADAROUND[table], settings, journal=arguments.journal, tell=print)
        command = shlex.join(["python", "papers/adaround_2020/on_real_networks.py", *sys.argv[1:]])
        text = page(study, ADAROUND[table], settings, results, command, score(task.model))
        (HERE / f"{table}-{arguments.network}.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
