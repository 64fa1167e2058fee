"""The paper's ablation on trained networks, without any data: one line in the journal for each finished run.

    python papers/dfq_2019/on_real_networks.py measure mobilenet_v2 --bits 8 6 --activations float 8
    python papers/dfq_2019/on_real_networks.py figures mobilenet_v2
    python papers/dfq_2019/on_real_networks.py page

`measure` goes on where an interrupted run was: what is in the journal is not run again. `page` writes results.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import roundwise as rw
from roundwise.engine.rewriting import apply_rewrites, folded
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.graph import Graph

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "benchmarks"))
import networks  # noqa: E402  where the networks and images are

JOURNAL = HERE / "results.jsonl"

NETWORKS = ("resnet20", "mobilenet_v2", "mobilenet_v1_075")

INPUTS = {"resnet20": ((0 - 0.485) / 0.229, (1 - 0.406) / 0.225)}
"""The smallest and the largest number in an image, normalised; −1 and 1 for the MobileNets."""

EQUALIZED = (rw.rewrites.CrossLayerEqualization(),)
ABSORBED = (*EQUALIZED, rw.rewrites.HighBiasAbsorption())
CORRECTED = rw.corrections.AnalyticBias()

ROWS: dict[str, tuple[tuple[rw.rewrites.GraphRewrite, ...], rw.corrections.Correction[Any] | None]] = {
    "original": ((), None),
    "bias correction alone": ((), CORRECTED),
    "equalization": (EQUALIZED, None),
    "equalization, absorption": (ABSORBED, None),
    "equalization, bias correction": (EQUALIZED, CORRECTED),
    "equalization, absorption, bias correction": (ABSORBED, CORRECTED),
    "the same, absorbing nothing across padding": (
        (*EQUALIZED, rw.rewrites.HighBiasAbsorption(across_padding=False)),
        CORRECTED,
    ),
}


def settings(network: str, row: str, bits: int, activations: str, per_channel: bool) -> dict[str, Any]:
    """What a run is known by in the journal."""
    granularity = "per-channel" if per_channel else "per-tensor"
    return {"network": network, "row": row, "bits": bits, "activations": activations, "granularity": granularity}


def journal() -> list[dict[str, Any]]:
    """The finished runs."""
    return [json.loads(line) for line in JOURNAL.read_text().splitlines()] if JOURNAL.is_file() else []


def measure(task: networks.Task, wanted: dict[str, Any]) -> float:
    """Quantize without data; returns the accuracy on the evaluation images."""
    rewrites, correction = ROWS[wanted["row"]]
    if wanted["bits"] == 32:
        return task.accuracy(rewritten(task.model, task.calibration, rewrites).module(), batch=50)
    activations = None
    if wanted["activations"] != "float":
        low, high = INPUTS.get(wanted["network"], (-1.0, 1.0))
        ranges = rw.activations.ActivationBatchNorm(input_low=low, input_high=high)
        activations = rw.Activations(bits=int(wanted["activations"]), ranges=ranges)
    granularity = rw.PerChannel() if wanted["granularity"] == "per-channel" else rw.PerTensor()
    recipe = rw.Recipe(
        (
            rw.Rewrite(rewrites),
            rw.Quantize(
                weights=rw.Weights(bits=wanted["bits"], granularity=granularity),
                rounding=rw.rounding.Nearest(),
                activations=activations,
                correction=correction,
            ),
        )
    )
    return task.accuracy(rw.quantize(task.model, rw.DataFree(tuple(task.images.shape[1:])), recipe), batch=50)


def rewritten(model: nn.Module, images: Tensor, rewrites: tuple[rw.rewrites.GraphRewrite, ...]) -> Graph:
    """The float network after the rewrites."""
    graph = folded(TorchExport().graph(model, (images[:2],), {}))
    return apply_rewrites(graph, rewrites, (images[:2],), {})[0]


def figures(network: str) -> None:
    """Weights of each output channel of one layer, before and after equalization (the paper's Figures 2 and 6)."""
    import matplotlib.pyplot as plt

    task = networks.load(network, 2)
    graphs = {
        title: rewritten(task.model, task.calibration, rewrites)
        for title, rewrites in {"before": (), "after equalization": EQUALIZED}.items()
    }
    # The first depthwise layer, whose channels differ most; where there is none, the second layer.
    layers = find_layers(graphs["before"])
    name = next((layer.weight for layer in layers[1:] if layer.map.groups > 1), layers[1].weight)
    figure, axes = plt.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, (title, graph) in zip(axes, graphs.items(), strict=True):
        weights = graph.constants[name].flatten(1)
        axis.boxplot(list(weights.numpy()), widths=0.6, whis=(0, 100), medianprops={"color": "#b33"})
        axis.axhline(0, color="#999", linewidth=0.6, zorder=0)
        axis.set_ylabel("weight")
        axis.set_title(f"{network}, {name.removesuffix('.weight')}: {title}", fontsize=10)
        ticks = range(1, len(weights) + 1, max(1, len(weights) // 16))
        axis.set_xticks(list(ticks), [str(tick) for tick in ticks])
    axes[-1].set_xlabel("output channel")
    (HERE / "figures").mkdir(exist_ok=True)
    for kind in ("png", "svg"):
        figure.savefig(HERE / "figures" / f"weights-{network}.{kind}", dpi=120)


def page() -> str:
    """All runs of the journal as tables; what has not been run is said to be missing."""
    runs = {tuple(sorted((k, v) for k, v in run.items() if k not in FIGURES)): run for run in journal()}
    columns = [(32, "float", False)]
    columns += [(bits, a, c) for c in (False, True) for bits, a in ((8, "float"), (8, "8"), (6, "float"), (5, "float"))]
    names = [f"W{b}A{'32' if a == 'float' else a} per {'channel' if c else 'tensor'}" for b, a, c in columns[1:]]
    lines = ["# Measured without data", ""]
    for network in dict.fromkeys(run["network"] for run in runs.values()):
        images = next(run["images"] for run in runs.values() if run["network"] == network)
        lines += [f"## {network}", "", f"Top-1 in percent on {images} test images.", ""]
        lines += [f"| | float | {' | '.join(names)} |", "|---|" + "---|" * len(columns)]
        for row in ROWS:
            cells = []
            for bits, activations, channel in columns:
                run = runs.get(tuple(sorted(settings(network, row, bits, activations, channel).items())))
                missing = "–" if bits == 32 and ROWS[row][1] is not None else "not run"  # nothing there to correct
                cells.append(missing if run is None else f"{run['accuracy']:.2f}")
            lines.append(f"| {row} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


FIGURES = ("accuracy", "images", "seconds", "hardware")
"""What a run found; all else in the journal's lines is what it was."""


def main() -> None:
    """Parse the command line; measure, draw, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "figures", "page"])
    parser.add_argument("network", nargs="?", default="resnet20", choices=NETWORKS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--bits", nargs="+", type=int, default=[8], help="32 measures the float network, rewritten")
    parser.add_argument("--activations", nargs="+", default=["float"], help="bits, or float")
    parser.add_argument("--per-channel", action="store_true")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.what == "figures":
        figures(arguments.network)
    elif arguments.what == "page":
        (HERE / "results.md").write_text(page(), encoding="utf-8")
    else:
        task = networks.load(arguments.network, 4, arguments.device)
        for bits in arguments.bits:
            for activations in arguments.activations:
                for row in arguments.rows:
                    wanted = settings(arguments.network, row, bits, activations, arguments.per_channel)
                    if any(wanted.items() <= run.items() for run in journal()):
                        continue
                    if bits == 32 and ROWS[row][1] is not None:
                        continue  # nothing is corrected where nothing is rounded
                    begin = time.perf_counter()
                    accuracy = measure(task, wanted)
                    seconds = time.perf_counter() - begin
                    hardware = networks.device_name(arguments.device)
                    found = dict(zip(FIGURES, (accuracy, len(task.labels), seconds, hardware), strict=True))
                    with JOURNAL.open("a") as file:
                        file.write(json.dumps({**wanted, **found}) + "\n")
                    print(f"{wanted} {accuracy:.2f} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
