"""How time and memory of `rw.quantize` with its default solver grow with the network, the images and the layers.

    python benchmarks/scaling.py --json scaling.jsonl --plot plots       # everything
    python benchmarks/scaling.py --what depth images --quick             # the two smallest points of each of the two
    python benchmarks/scaling.py --summary scaling.jsonl --plot plots    # tables and plots of what was measured before

Measured are: residual networks for CIFAR of 20 to 110 layers; the 20-layer one with more images, and with larger ones;
and single layers of growing width: a 3×3 convolution with a ReLU after it, and a linear layer without. All weights are
random. Batch-norms have the statistics of the network's own activations; inputs are correlated, since independent ones
would make the solver's work easier than real ones do.

Each measurement is a process of its own, so that its peak memory is its own; a small network is quantized first, so
that nothing is loaded while time and memory are taken. `--json FILE` appends each finished measurement as a line;
started again with the same file, the benchmark leaves out what is there, but tries again what failed. Linux only, as
`engine/store.py`, which says what occupied memory contains.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import MIB, Highest, anonymous
from side_by_side import machine, reason, say
from torch import Tensor, nn
from torch.nn import functional as F

import roundwise as rw
from roundwise.events import Plan, Planned

Record = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        kind: "network"; or "conv" or "linear" for a single layer.
        samples: number of calibration samples.
        depth, pixels: of a network: convolutions and linear layers on its longest path, and the images' side.
        width: of a single layer: channels or features, as many out as in.
    """

    kind: str
    samples: int
    depth: int = 0
    pixels: int = 0
    width: int = 0


@dataclass(frozen=True)
class Chart:
    """Points that differ in one quantity: a table, and a plot.

    Attributes:
        title: of both.
        axis: the quantity in words.
        attribute: the quantity in a `Point`.
        points: in ascending order.
        logarithmic: whether the plot's axes are.
    """

    title: str
    axis: str
    attribute: str
    points: tuple[Point, ...]
    logarithmic: bool = True


CHARTS = {
    "depth": Chart(
        "Depth: residual networks, 256 images of 32 × 32",
        "layers",
        "depth",
        tuple(Point("network", 256, depth=depth, pixels=32) for depth in (20, 32, 44, 56, 110)),
        logarithmic=False,
    ),
    "images": Chart(
        "Calibration images: 20 layers, 32 × 32",
        "images",
        "samples",
        tuple(Point("network", samples, depth=20, pixels=32) for samples in (64, 256, 1024, 4096)),
    ),
    "size": Chart(
        "Input size: 20 layers, 128 images",
        "pixels a side",
        "pixels",
        tuple(Point("network", 128, depth=20, pixels=pixels) for pixels in (32, 64, 96, 128)),
    ),
    "conv": Chart(
        "Width: one 3×3 convolution, 256 inputs of 14 × 14",
        "channels",
        "width",
        tuple(Point("conv", 256, width=width) for width in (64, 128, 256, 512)),
    ),
    "linear": Chart(
        "Width: one linear layer, 256 inputs of 64 positions",
        "features",
        "width",
        tuple(Point("linear", 256, width=width) for width in (1024, 2048, 4096)),
    ),
}

WHAT = {"depth": ["depth"], "images": ["images"], "size": ["size"], "width": ["conv", "linear"]}
"""What `--what` takes, and the charts that it stands for."""

STAGES = ("capture", "forward", "ranges", "rounding")
"""Of the report's stages those that are shown; the others take next to nothing."""

LEGEND = """\
Seconds: wall time of all, processor time of all, and wall time by stage (forward: the network's operations in both
streams, collecting statistics, and measuring errors). Power: the power of the quantity by which wall time grew from the
row above. Held: activations between layers, at the most. Planned: what the plan announced, activations between layers
and what is needed on top for the work on them. Occupied: anonymous memory at the most, beyond what there was when the
plan was announced; so the inputs, which the caller holds, are not in it, nor is what finds place in memory that was
freed before, which matters where the figure is small. MiB."""


# -------------------------------------------------------------------------------------------------- one measurement


class Block(nn.Module):
    """Two convolutions and a shortcut without weights, as in a ResNet for CIFAR."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.stride, self.more = width // inputs, width - inputs
        self.conv1 = nn.Conv2d(inputs, width, 3, self.stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return F.relu(out + x)


def residual_network(depth: int) -> nn.Sequential:
    """A ResNet for CIFAR of 6 n + 2 layers, with batch-norm statistics that fit."""
    blocks = (depth - 2) // 6
    widths = [width for width in (16, 32, 64) for _ in range(blocks)]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(Block(inputs, width) for inputs, width in zip([16, *widths], widths, strict=False)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    randomize(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # one batch is all that the statistics know
    with torch.no_grad():
        model.train()(images(16, 32))
    return model


def randomize(model: nn.Module) -> None:
    """Normally distributed weights that keep the size of activations."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)


def images(samples: int, pixels: int) -> Tensor:
    """Noise, coarse and fine."""
    coarse = F.interpolate(torch.randn(samples, 3, pixels // 4, pixels // 4), size=pixels, mode="bilinear")
    return coarse.add_(torch.randn_like(coarse), alpha=0.3)


def features(samples: int, positions: int, width: int) -> Tensor:
    """Positive numbers, half of them 0, that have few causes in common."""
    causes: Tensor = torch.randn(samples, positions, 32) @ torch.randn(32, width) / 32**0.5
    return causes.add_(torch.randn_like(causes)).relu_()


def build(point: Point) -> tuple[nn.Module, Tensor]:
    """The model and its calibration samples."""
    model: nn.Module
    width = point.width
    if point.kind == "network":
        model, samples = residual_network(point.depth), images(point.samples, point.pixels)
    elif point.kind == "conv":
        model = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        samples = features(point.samples, 14 * 14, width).mT.reshape(point.samples, width, 14, 14)
        randomize(model)
    else:
        model, samples = nn.Sequential(nn.Linear(width, width)), features(point.samples, 64, width)
        randomize(model)
    return model.eval(), samples


def measure(point: Point) -> Record:
    """Quantize in this process, and return what it took."""
    torch.manual_seed(0)
    recipe = rw.Recipe((rw.Quantize(rounding=rw.rounding.GramAdaRound()),), memory_budget=1 << 40)
    rw.quantize(residual_network(8).eval(), images(8, 16), recipe)  # loads what is loaded when first used
    model, samples = build(point)
    plans: list[Plan] = []
    before: list[int] = []
    begin, begin_processor = time.perf_counter(), time.process_time()
    with ExitStack() as stack:
        highest = Highest()

        def listen(event: Any) -> None:
            if isinstance(event, Planned):
                plans.append(event.plan)
                before.append(anonymous())
                stack.enter_context(highest)

        report = rw.quantize(model, samples, recipe, progress=listen).report
        seconds, processor_seconds = time.perf_counter() - begin, time.process_time() - begin_processor
    return {
        "layers": len(report.layers),
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "stages": report.seconds,
        "widest_bytes": plans[0].widest_bytes,
        "working_bytes": plans[0].working_bytes,
        "held_bytes": report.peak_activation_bytes,
        "occupied_bytes": highest.bytes - before[0],
        "versions": {"roundwise": rw.__version__, "torch": torch.__version__},
    }


# ----------------------------------------------------------------------------------------------------- all of them


def execute(point: Point, threads: int) -> Record:
    """Measure one point in a process of its own; `failed` has the reason if it did not work."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--threads", str(threads), "--point", json.dumps(dataclasses.asdict(point))]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return {"failed": f"ended by signal {-done.returncode}; 9 is what systems send that are out of memory"}
    if done.returncode:
        return {"failed": reason(done.stderr)}
    measured: Record = json.loads(done.stdout.splitlines()[-1])
    return measured


def identity(record: Record) -> tuple[Point, int]:
    """What makes two records ones of the same measurement."""
    return Point(**record["point"]), record["threads"]


def finished(journal: Path | None) -> list[Record]:
    """The records of a file; of several of the same measurement, the last."""
    if journal is None or not journal.is_file():
        return []
    records = [json.loads(line) for line in journal.read_text().splitlines() if line]
    return list({identity(record): record for record in records}.values())


def benchmark(points: Iterable[Point], threads: int, journal: Path | None) -> list[Record]:
    """Measure all points; those that the journal has are not measured again."""
    known = {identity(record): record for record in finished(journal) if "failed" not in record}
    records = []
    for point in points:
        key = point, threads
        if key not in known:
            say(f"{point} …")
            record = {"point": dataclasses.asdict(point), "threads": threads, "machine": machine()}
            known[key] = record | execute(point, threads)
            say(f"  {known[key].get('failed') or '{:.1f} s'.format(known[key]['seconds'])}")
            if journal:
                with journal.open("a") as file:
                    file.write(json.dumps(known[key]) + "\n")
        records.append(known[key])
    return records


def on_chart(records: list[Record], chart: Chart, threads: int) -> list[Record]:
    """Those that belong there, in the chart's order."""
    known = {identity(record): record for record in records}
    return [known[point, threads] for point in chart.points if (point, threads) in known]


# -------------------------------------------------------------------------------------------------- tables and plots


def tables(records: list[Record], names: list[str]) -> str:
    """Markdown: a table for each chart and number of threads, what the columns mean, the machines and versions."""
    parts = []
    for threads in sorted({record["threads"] for record in records}):
        for name in names:
            rows = on_chart(records, CHARTS[name], threads)
            if rows:
                parts.append(table(rows, CHARTS[name]))
    done = [record for record in records if "failed" not in record]
    sources = {
        f"- {r['machine']}; {threads_in_words(r)}; roundwise {r['versions']['roundwise']}, "
        f"torch {r['versions']['torch']}": None
        for r in done
    }
    return "\n\n".join([*parts, LEGEND, "\n".join(sources)])


def table(records: list[Record], chart: Chart) -> str:
    """One chart as a Markdown table."""
    columns = (chart.axis, "quantized", "s", "power", "processor, s", *(f"{stage}, s" for stage in STAGES))
    columns += ("held", "planned: activations", "planned: work", "occupied", "occupied / planned")
    lines = [
        f"**{chart.title}; {threads_in_words(records[0])}**",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    previous: Record | None = None
    for record in records:
        value = str(record["point"][chart.attribute])
        if "failed" in record:
            lines.append(f"| {value} | failed: {record['failed'].replace('|', '/')} {'|' * (len(columns) - 1)}")
            continue
        power = f"{growth(previous, record, chart.attribute):.2f}" if previous else ""
        cells = (
            *(value, str(record["layers"]), f"{record['seconds']:.1f}", power, f"{record['processor_seconds']:.1f}"),
            *(f"{record['stages'][stage]:.1f}" for stage in STAGES),
            *(f"{record[f'{name}_bytes'] / MIB:.1f}" for name in ("held", "widest", "working", "occupied")),
            f"{record['occupied_bytes'] / planned(record):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
        previous = record
    return "\n".join(lines)


def growth(first: Record, second: Record, attribute: str) -> float:
    """The power of the quantity by which time grows."""
    ratio = second["point"][attribute] / first["point"][attribute]
    return math.log(second["seconds"] / first["seconds"]) / math.log(ratio)


def planned(record: Record) -> int:
    """Bytes that the plan announced, for activations and for the work on them."""
    return int(record["widest_bytes"] + record["working_bytes"])


def threads_in_words(record: Record) -> str:
    """How many threads it ran with."""
    return f"{record['threads']} thread{'s' * (record['threads'] > 1)}"


def plot(records: list[Record], names: list[str], folder: Path) -> None:
    """Draw the charts, time on the left and memory on the right, as PNG and SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    done = [record for record in records if "failed" not in record]
    thread_counts = sorted({record["threads"] for record in done})
    for threads in thread_counts:
        for name in names:
            rows = on_chart(done, CHARTS[name], threads)
            if rows:
                suffix = f"-{threads}-threads" if len(thread_counts) > 1 else ""
                draw(rows, CHARTS[name], folder / f"scaling-{name}{suffix}")


def draw(records: list[Record], chart: Chart, path: Path) -> None:
    """Draw one chart; `path` has no ending yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter, NullLocator

    values = [record["point"][chart.attribute] for record in records]
    times = {"in all": [record["seconds"] for record in records]}
    times |= {stage: [record["stages"][stage] for record in records] for stage in STAGES}
    memory = {
        "occupied": [record["occupied_bytes"] / MIB for record in records],
        "activations held": [record["held_bytes"] / MIB for record in records],
        "planned, with work": [planned(record) / MIB for record in records],
    }
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{chart.title}; {threads_in_words(records[0])}", fontsize=11)
    for axes, label, series in zip(figure.subplots(1, 2), ("seconds", "MiB"), (times, memory), strict=True):
        for (name, heights), style in zip(series.items(), STYLES, strict=False):
            if name.startswith("planned"):
                style = {"color": "black", "linestyle": "--"}
            axes.plot(values, heights, label=name, markersize=5, linewidth=1.5, **style)
        if chart.logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(left=0)
            axes.set_ylim(0, 1.08 * max(max(heights) for heights in series.values()))
        axes.set_xticks(values, [str(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(chart.axis)
        axes.set_ylabel(label)
        axes.grid(color="0.85", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


STYLES: tuple[dict[str, Any], ...] = (
    {"color": "black", "marker": "o"},
    {"color": "#0072b2", "marker": "s"},
    {"color": "#d55e00", "marker": "^"},
    {"color": "#009e73", "marker": "D"},
    {"color": "#a0568c", "marker": "v"},
)
"""Colours that differ for the colour-blind too, and markers that differ without colours."""


def main() -> None:
    """Parse the command line, measure, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="what grows (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the two smallest points of each quantity only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep measurements there, and go on from there")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="measure nothing: show those of a --json file")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the measurements as PNG and SVG")
    parser.add_argument("--point", help=argparse.SUPPRESS)  # this is the process that measures it
    arguments = parser.parse_args()
    if arguments.point:
        torch.set_num_threads(arguments.threads)
        print(json.dumps(measure(Point(**json.loads(arguments.point)))))
        return
    if arguments.summary and not arguments.summary.is_file():
        parser.error(f"--summary: there is no file {arguments.summary}")
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error('--plot needs matplotlib: pip install "roundwise[bench]", or pip install ".[bench]" in a checkout')
    names = [name for what in arguments.what for name in WHAT[what]]
    if arguments.summary:
        records = finished(arguments.summary)
    else:
        points = [point for name in names for point in CHARTS[name].points[: 2 if arguments.quick else None]]
        records = benchmark(dict.fromkeys(points), arguments.threads, arguments.json)
    print(tables(records, names))
    if arguments.plot:
        plot(records, names, arguments.plot)


if __name__ == "__main__":
    main()
