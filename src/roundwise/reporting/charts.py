"""Where the marks of the report's figures stand; `page.html.jinja` draws them as SVG.

A figure has its own units (the viewBox of the SVG) and is scaled to the width of the page. A value that the axis cannot
show stands on a dashed line beyond the axis: an error of 0 below a logarithmic axis, infinity and NaN above it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from roundwise.numerics.grid import Codebook
from roundwise.report import LayerReport, WeightSummary
from roundwise.reporting.words import OVERFLOW, number

WIDTH, HEIGHT = 960.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 72.0, 10.0, 10.0, 40.0
STRIP = 20.0
"""Height of the strip beyond an end of the axis."""

LABELS = 20
"""With more layers than this, only every second, fifth, … layer has its number below the chart."""

NARROWEST = 3.0
"""Grid points that are closer than this are drawn as one band."""

MOST_TICKS = 256
"""Grids of more points are drawn as one band too."""


@final
@dataclass(frozen=True)
class Axis:
    """The vertical axis of a chart.

    Attributes:
        low, high: the ends of the axis; of a logarithmic axis, their logarithms.
        ticks: values with a line and a label.
        log: whether the axis is logarithmic.
        below, above: whether there are values beyond that end.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool
    below: bool
    above: bool

    @classmethod
    def of(cls, values: Sequence[float], log: bool) -> Axis:
        """An axis for these values, with round numbers at its ticks."""
        sides = [_beyond(value, log) for value in values]
        below, above = "below" in sides, "above" in sides
        shown = [value for value, side in zip(values, sides, strict=True) if not side]
        if log:
            first = math.floor(math.log10(min(shown, default=0.1)))
            last = max(first + 1, math.ceil(math.log10(max(shown, default=1.0))))
            decades = range(first, last + 1, math.ceil((last - first) / 8))
            return cls(first, last, tuple(10.0**decade for decade in decades), log, below, above)
        low, high = min([0.0, *shown]), max([0.0, *shown])
        step = _round_step((high - low) / 5 or 1.0)
        first, last = math.floor(low / step), max(math.floor(low / step) + 1, math.ceil(high / step))
        ticks = tuple(index * step for index in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks, log, below, above)

    def y(self, value: float) -> float:
        """The distance from the top of the chart."""
        top, bottom = TOP + STRIP * self.above, HEIGHT - BOTTOM - STRIP * self.below
        side = _beyond(value, self.log)
        if side:
            return TOP + STRIP / 2 - 2 if side == "above" else HEIGHT - BOTTOM - STRIP / 2 + 2
        along = (math.log10(value) if self.log else value) - self.low
        return round(bottom - (bottom - top) * along / (self.high - self.low), 1)

    @property
    def lines(self) -> list[tuple[float, str, str]]:
        """The horizontal lines: height, label, and class in the style sheet."""
        lines = [(self.y(tick), number(tick), "line") for tick in self.ticks]
        if self.below:
            lines.append((self.y(0.0 if self.log else -math.inf), "0" if self.log else "−∞, NaN", "line beyond"))
        if self.above:
            lines.append((self.y(math.inf), "∞, NaN" if self.log else "∞", "line beyond"))
        return lines


class Mark(NamedTuple):
    """One value of one layer. `kind` is "nearest", "chosen" or "bar": its form and its class in the style sheet."""

    kind: str
    x: float
    y: float
    title: str


def chart(
    title: str, names: Sequence[str], series: Mapping[str, Sequence[float]], *, log: bool = False, unit: str = ""
) -> dict[str, Any]:
    """Place the values of all layers side by side.

    Args:
        title: what the chart shows.
        names: of the layers.
        series: for each kind of mark, one value per layer. A line joins the two values of a layer.
        log: whether the axis is logarithmic.
        unit: shown after each value, under the mouse.

    Returns:
        What the template draws: the `lines` of the axis; `numbers` of layers, each with its x; `marks`; `joins` (x and
        both y); where bars begin (`zero`), and the width of a `bar`.
    """
    axis = Axis.of([value for values in series.values() for value in values], log)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    xs = [round(LEFT + step * (index + 0.5), 1) for index in range(len(names))]
    heights = {kind: list(map(axis.y, values)) for kind, values in series.items()}
    every = max(1, round(_round_step(len(names) / LABELS)))
    return {
        "title": title,
        "lines": axis.lines,
        "numbers": [(x, layer) for layer, x in enumerate(xs, start=1) if layer % every == 0],
        "marks": [
            Mark(kind, x, y, f"{layer} {name}: {'' if kind == 'bar' else f'{kind} '}{number(value)}{unit}")
            for kind, values in series.items()
            for layer, (x, y, name, value) in enumerate(zip(xs, heights[kind], names, values, strict=True), start=1)
        ],
        "joins": list(zip(xs, *heights.values(), strict=True)) if len(series) == 2 else [],
        "zero": axis.y(axis.low if log else 0.0),
        "bar": round(max(1.0, 0.7 * (WIDTH - LEFT - RIGHT) / max(12, len(names))), 1),
    }


def weight_figure(layer: LayerReport, summary: WeightSummary) -> dict[str, Any]:
    """Place the histogram of a layer's float weights, and below it the points of its finest and coarsest grid.

    Returns:
        What the template draws, 320 units wide: the outline of the `bins`, 84 units high, as an SVG path; the `grids`
        from top to bottom; the `labels` below them (x, anchor and text), and their height (`foot`).
    """
    width, height, left = 320.0, 84.0, 4.0
    low = min(summary.smallest, summary.lower_ends[0])
    high = max(summary.largest, summary.upper_ends[1])
    if high <= low:
        low, high = low - 1.0, high + 1.0

    def x(value: float) -> float:
        return left + (width - 2 * left) * (value - low) / (high - low)

    grids = [("grid", summary.finest)]
    if summary.scales > 1:
        grids = [("finest grid", summary.finest), ("coarsest grid", summary.coarsest)]
    ends = f"{number(summary.smallest)} to {number(summary.largest)}"
    book = Codebook(layer.bits, layer.symmetric)
    rows: list[dict[str, Any]] = []
    for name, (scale, zero_point) in grids:
        first, last = (x(scale * (code - zero_point)) for code in (book.qmin, book.qmax))
        rows.append(_grid_row(name, scale, book.qmax - book.qmin + 1, first, last, height + 4 + 13 * len(rows)))
    labels = [(left, "start", number(low)), (width - left, "end", number(high))]
    if low < 0 < high and 0.2 < -low / (high - low) < 0.8:
        labels.append((round(x(0.0), 1), "middle", "0"))
    return {
        "title": f"{layer.name}: {layer.weights:,} weights from {ends}",
        "bins": _outline(summary.counts, x(summary.smallest), x(summary.largest), height),
        "grids": rows,
        "labels": labels,
        "foot": height + 16 + 13 * len(rows),
    }


def _outline(counts: Sequence[int], first: float, last: float, height: float) -> str:
    """One outline around the bars of a histogram."""
    if last - first < 3:  # keep it visible where the grid is far wider than the weights
        first, last = (first + last) / 2 - 1.5, (first + last) / 2 + 1.5
    step, highest = (last - first) / len(counts), max(*counts, 1)
    path = f"M{first:.1f} {height:g}"
    for index, count in enumerate(counts, start=1):
        path += f"V{height - (height - 8) * count / highest:.1f}H{first + step * index:.2f}"
    return f"{path}V{height:g}Z"


def _grid_row(name: str, scale: float, points: int, first: float, last: float, y: float) -> dict[str, Any]:
    """A path with one tick for each point, or the place of a band where the points are too close to tell apart."""
    step = (last - first) / (points - 1)
    apart = step >= NARROWEST and points <= MOST_TICKS
    return {
        "title": f"{name}: {points:,} points, one every {number(scale)}",
        "ticks": "".join(f"M{first + step * i:.1f} {y:g}v9" for i in range(points)) if apart else "",
        "x": round(first, 1),
        "y": y,
        "width": round(max(1.0, last - first), 1),
    }


def _beyond(value: float, log: bool) -> str:
    """The side on which a value is beyond what an axis can show, "above" or "below"; "" where the axis can show it."""
    if math.isnan(value):
        return "above" if log else "below"
    if value >= OVERFLOW:
        return "above"
    return "below" if value <= (0 if log else -OVERFLOW) else ""


def _round_step(wanted: float) -> float:
    """The next of 1, 2, 5, 10, 20, … times a power of ten."""
    power = 10.0 ** max(-300, math.floor(math.log10(wanted))) if wanted > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))
