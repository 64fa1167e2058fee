"""The paper's four figures, drawn as PNG and SVG: they differ by markers and lines too, for print without colours."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plan import DOMAINS, PARTS, Part, float_score, study
from torch import Tensor

from roundwise import Recipe, quantize
from roundwise.engine.unit import generator_for
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.rounding import AdaRound, Nearest, Stochastic
from roundwise.numerics.search.relaxation import regularizer
from roundwise.recipe.stages import Quantize, Rewrite
from roundwise.reproduction import Result, Row, quantize_row
from roundwise.reproduction.taskloss import GaussNewton, PredictedClasses, TaskHessian, task_hessian
from roundwise.statistics import Nothing, Samples

Results = Mapping[Part, Sequence[Result]]

mpl.rcParams["svg.hashsalt"] = "roundwise"  # so that the same figure is the same file

BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"

HESSIAN_SAMPLES = 256
ITERATIONS = 10_000
"""Of Figure 3, as in the paper: one layer can have them."""

TICKS = (64, 256, 1024, 2048)

NETWORKS = {"resnet20": "ResNet-20, 3 bits per tensor", "mobilenet_v1_075": "MobileNetV1 0.75, 4 bits per channel"}


# ------------------------------------------------------------------------- Figure 1: the cost of Eq. 13 and accuracy


@final
@dataclass(frozen=True, eq=False)
class Draws(RoundingSolver[Nothing]):
    """Keeps the weights that stochastic rounding gives a layer with each of the first seeds; answers with nearest."""

    count: int
    weights: list[Tensor] = field(default_factory=list)
    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem: Problem[Nothing], generator: torch.Generator) -> Rounding:
        for seed in range(self.count):
            codes = Stochastic().solve(problem, generator_for(seed, problem.name)).codes
            self.weights.append(problem.grid.dequantize(codes))
        return Nearest().solve(problem, generator)


def costs(part: Part, count: int) -> tuple[list[float], float]:
    """dᵀ H d of the first layer's stochastic roundings, and of nearest rounding."""
    of, weights = study(part), part.settings().weights
    hessian: TaskHessian = task_hessian(
        of.model, of.first_layer, of.samples(HESSIAN_SAMPLES), PredictedClasses(), curvature=GaussNewton()
    )
    draws = Draws(count)
    quantize_row(
        of, Row("", "", Recipe((Rewrite(()), Quantize(weights=weights, rounding=draws))), first_layer_only=True), 0
    )
    return [hessian.cost(it) for it in draws.weights], hessian.cost(hessian.grid(weights).fake_quantize(hessian.weight))


def figure1(results: Results, path: Path) -> str:
    """The cost of Eq. 13 against accuracy, for the stochastic roundings of Table 1."""
    ((part, rows),) = ((part, rows) for part, rows in results.items() if part.table == "table1")
    scores = {result.row.name: result.scores for result in rows}
    accuracies, (nearest,) = scores["stochastic"], scores["nearest"]
    stochastic_costs, nearest_cost = costs(part, len(accuracies))
    r = statistics.correlation(stochastic_costs, accuracies)
    axes = one_plot(f"A lower cost tends to mean a higher accuracy: r = {r:.2f}")
    axes.scatter(
        stochastic_costs, accuracies, s=22, facecolors="none", edgecolors=BLUE, label=f"{len(accuracies)} stochastic"
    )
    axes.scatter([nearest_cost], [nearest], s=70, marker="*", color=ORANGE, label="nearest", zorder=3)
    axes.set_xlabel("cost dᵀ H d (Eq. 13), twice nats")
    axes.set_ylabel(f"top-1 accuracy, % of {part.tests:,} images")
    axes.legend(frameon=False, fontsize=9)
    save(axes, path)
    better = sum(score > nearest for score in accuracies)
    return f"r = {r:.3f}; {better} of {len(accuracies)} better than nearest rounding"


# ----------------------------------------------------------------------------------------- Figure 2: the regularizer


def figure2(_: Results, path: Path) -> str:
    """f_reg over h(V), for several β."""
    up = torch.linspace(0, 1, 401)
    axes = one_plot("At β = 20 only decided weights are pulled to an end, at β = 2 all")
    for beta, style in ((20, "-"), (8, "--"), (4, "-."), (2, ":")):
        axes.plot(up, regularizer(up, float(beta)), style, label=f"β = {beta}", color="black", linewidth=1.5)
    axes.set_xlabel("h(V), from down (0) to up (1)")
    axes.set_ylabel("regularizer of one weight (Eq. 24)")
    axes.legend(frameon=False, fontsize=9, loc="lower center")
    save(axes, path)
    return "as in the paper"


# ------------------------------------------------------------------------------- Figure 3: h(V) before and afterwards


@final
@dataclass(frozen=True, eq=False)
class Watched(RoundingSolver[Samples]):
    """AdaRound by minibatches, which keeps h(V) as it was and as it has become."""

    solver: AdaRound
    seen: dict[str, Tensor] = field(default_factory=dict)
    needs: ClassVar[type] = Samples

    @property
    def traits(self) -> Traits:
        return self.solver.traits

    def solve(self, problem: Problem[Samples], generator: torch.Generator) -> Rounding:
        grid = problem.grid
        in_codes = grid.in_codes(problem.weight)
        inside = (in_codes > grid.codebook.qmin) & (in_codes < grid.codebook.qmax)  # elsewhere both ways are one code
        after = self.solver.learn(problem, generator)
        self.seen.update(before=(in_codes - in_codes.floor())[inside], after=after[inside])
        return Rounding(grid.clip(in_codes.floor() + (after >= 0.5)).to(torch.int32))


def figure3(_: Results, path: Path) -> str:
    """h(V) of the first layer before and after Eq. 21 is minimised."""
    part = next(part for part in PARTS if part.table == "table1")
    of, weights = study(part), part.settings().weights
    watched = Watched(AdaRound(iterations=ITERATIONS, asymmetric=False, activation_aware=False))
    only_first = {"*": None, of.first_layer: weights}
    quantized = quantize(
        of.model,
        of.calibration,
        Recipe((Rewrite(()), Quantize(weights=weights, rounding=watched, overrides=only_first))),
    )
    before, after = watched.seen["before"], watched.seen["after"]
    decided = ((after == 0) | (after == 1)).float().mean().item()
    turned = (before >= 0.5) != (after >= 0.5)
    share = turned.float().mean().item()
    axes = one_plot(f"{100 * decided:.0f} % of h(V) end at 0 or 1, {100 * share:.0f} % unlike nearest rounding")
    axes.axvspan(0, 0.5, 0.5, 1, color="0.93")
    axes.axvspan(0.5, 1, 0, 0.5, color="0.93")
    for chosen, marker, colour, label in (
        (~turned, "o", BLUE, "as nearest rounding"),
        (turned, "x", ORANGE, "the other way (shaded)"),
    ):
        points = axes.scatter(before[chosen], after[chosen], s=20, marker=marker, linewidths=1, label=label)
        points.set_edgecolor(colour)
        points.set_facecolor("none" if marker == "o" else colour)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel("h(V) before: the fraction of the float weight")
    axes.set_ylabel(f"h(V) after {ITERATIONS:,} iterations")
    axes.legend(frameon=False, fontsize=9, loc="center right", bbox_to_anchor=(1, 0.75))
    save(axes, path)
    return (
        f"{len(before)} weights inside the grid; {decided:.1%} at exactly 0 or 1; {share:.1%} unlike nearest rounding; "
        f"{of.score(quantized):.2f} % of {part.tests:,} images right"
    )


# ------------------------------------------------------------------------ Figure 4: how many images, and which images


def figure4(results: Results, path: Path) -> str:
    """Accuracy by the number of calibration images, of two domains."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    said = []
    for axes, network in zip(figure.subplots(1, 2), NETWORKS, strict=True):
        domains = DOMAINS[network]
        for domain, style in zip(domains, ({"fmt": "o-", "color": BLUE}, {"fmt": "s--", "color": ORANGE}), strict=True):
            found: dict[int, list[float]] = {}
            for part, rows in results.items():
                if (part.table, part.network, part.domain) == ("figure4", network, domain):
                    found.setdefault(part.samples, []).extend(score for result in rows for score in result.scores)
            points = {count: spread(scores) for count, scores in sorted(found.items()) if scores}
            if not points:
                continue
            own = " (its own)" if domain == domains[0] else ", resized"
            means, deviations = ([point[i] for point in points.values()] for i in (0, 1))
            axes.errorbar(list(points), means, deviations, capsize=3, label=f"{domain}{own}", markersize=5, **style)
            said.append(
                f"{network}, {domain}: "
                + ", ".join(f"{n}: {m:.2f}" + (f" ± {d:.2f}" if d else "") for n, (m, d) in points.items())
            )
        tests = next(part.tests for part in PARTS if (part.table, part.network) == ("figure4", network))
        axes.axhline(float_score(network, tests), color="black", linestyle=":", linewidth=1.2, label="float")
        axes.set_xscale("log", base=2)
        axes.set_xticks(TICKS, [str(tick) for tick in TICKS], fontsize=8)
        axes.minorticks_off()
        axes.set_title(NETWORKS[network], fontsize=10)
        axes.set_xlabel("calibration images")
        axes.set_ylabel("top-1 accuracy, %")
        plain(axes)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.suptitle("ResNet-20 takes images of either domain; MobileNetV1 needs its own", fontsize=11)
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    return "; ".join(said)


def spread(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation."""
    return statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0


# ------------------------------------------------------------------------------------------------------- all of them

FIGURES: dict[str, Callable[[Results, Path], str]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
}

NEEDS = {"figure1": "table1"}
"""The table whose runs a figure shows."""


def draw(name: str, results: Results, folder: Path) -> str:
    """Draw a figure as PNG and SVG; returns what it shows, in figures."""
    folder.mkdir(parents=True, exist_ok=True)
    return FIGURES[name](results, folder / name)


def one_plot(title: str) -> Axes:
    """Axes alone in a figure; the title states what is found."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    plain(axes)
    return axes


def plain(axes: Axes) -> None:
    """No more ink than needed."""
    axes.grid(color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(axes: Axes, path: Path) -> None:
    """As PNG and SVG, with nothing in them that changes from run to run."""
    figure: Any = axes.figure
    figure.savefig(path.with_suffix(".png"), dpi=200)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
