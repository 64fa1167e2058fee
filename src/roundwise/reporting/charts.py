"""Figures as SVG text, for a page that needs nothing else.

A figure is drawn in its own units (the viewBox) and takes the width it is given. Its colours are classes that the
page's style sheet names, so that it follows light, dark and print. Everything in it that is a number is also in the
page's tables; a `<title>` shows it under the mouse.

What an axis cannot hold stands on a line of its own beyond the axis: an error of 0 below a logarithmic one, an infinite
or undefined value above it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from roundwise.numerics.grid import Codebook
from roundwise.report import LayerReport, WeightSummary
from roundwise.reporting.words import OVERFLOW, escaped, number

WIDTH, HEIGHT = 960.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 72.0, 10.0, 10.0, 40.0
STRIP = 20.0
"""What a line beyond the axis takes of the height."""

LABELS = 20
"""Layers whose number is written below a chart; of more, every second, fifth, …"""

NARROWEST = 3.0
"""Grid points nearer than this are drawn as a band: 65,536 of them would be one anyway."""


@final
@dataclass(frozen=True)
class Series:
    """One value per layer; `kind` is its class in the style sheet and the form of its mark."""

    name: str
    kind: str
    values: Sequence[float]


@final
@dataclass(frozen=True)
class Axis:
    """Where a value stands in the height of a chart.

    Attributes:
        low, high: ends of the axis; their logarithms where `log`.
        ticks: values with a line and a label.
        below, above: whether there is a line beyond that end.
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
        fitting = [value for value in values if _fits(value, log)]
        below, above = (any(_beyond(value, log) == side for value in values) for side in ("below", "above"))
        if log:
            first = math.floor(math.log10(min(fitting, default=0.1)))
            last = max(first + 1, math.ceil(math.log10(max(fitting, default=1.0))))
            decades = range(first, last + 1, math.ceil((last - first) / 8))
            return cls(first, last, tuple(10.0**decade for decade in decades), log, below, above)
        low, high = min([0.0, *fitting]), max([0.0, *fitting])
        step = _round_step((high - low) / 5 or 1.0)
        first, last = math.floor(low / step), max(math.floor(low / step) + 1, math.ceil(high / step))
        ticks = tuple(index * step for index in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks, log, below, above)

    def y(self, value: float) -> float:
        """The height, from the top of the chart."""
        top, bottom = TOP + STRIP * self.above, HEIGHT - BOTTOM - STRIP * self.below
        side = _beyond(value, self.log)
        if side:
            return TOP + STRIP / 2 - 2 if side == "above" else HEIGHT - BOTTOM - STRIP / 2 + 2
        along = (math.log10(value) if self.log else value) - self.low
        return bottom - (bottom - top) * along / (self.high - self.low)


def dot_chart(title: str, names: Sequence[str], series: Sequence[Series], *, log: bool = False, unit: str = "") -> str:
    """A mark per layer and series; where there are two, a line joins each pair."""
    axis = Axis.of([value for one in series for value in one.values], log)
    parts = []
    for index in range(len(names)):
        x, ys = _x(index, len(names)), [axis.y(one.values[index]) for one in series]
        if len(ys) == 2:
            parts.append(f'<path class="join" d="M{x:.1f} {ys[0]:.1f}V{ys[1]:.1f}"/>')
    for one in series:
        for index, (name, value) in enumerate(zip(names, one.values, strict=True)):
            label = f"{index + 1} {name}: {one.name} {number(value)}{unit}"
            parts.append(_mark(one.kind, _x(index, len(names)), axis.y(value), label))
    return _chart(title, len(names), axis, parts)


def bar_chart(title: str, names: Sequence[str], values: Sequence[float], *, unit: str = "") -> str:
    """A bar per layer, from zero."""
    axis = Axis.of(values, log=False)
    width = max(1.0, 0.7 * (WIDTH - LEFT - RIGHT) / max(12, len(names)))
    parts = []
    for index, (name, value) in enumerate(zip(names, values, strict=True)):
        x, y, zero = _x(index, len(names)) - width / 2, axis.y(value), axis.y(0.0)
        parts.append(
            f'<rect class="bar" x="{x:.1f}" y="{min(y, zero):.1f}" width="{width:.1f}" height="{abs(zero - y):.1f}">'
            f"<title>{escaped(f'{index + 1} {name}: {number(value)}{unit}')}</title></rect>"
        )
    return _chart(title, len(names), axis, parts)


def share_bar(share: float) -> str:
    """A bar that fills a share of its width; the number itself stands beside it."""
    filled = 100 * min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    return (
        '<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="8"/>'
        f'<rect class="bar" width="{filled:.2f}" height="8"/></svg>'
    )


def weight_figure(layer: LayerReport, summary: WeightSummary) -> str:
    """How many weights there are of which value, and below it the points of the finest and the coarsest grid."""
    width, height, left = 320.0, 84.0, 4.0
    low = min(summary.smallest, summary.lower_ends[0])
    high = max(summary.largest, summary.upper_ends[1])
    if high <= low:
        low, high = low - 1.0, high + 1.0

    def x(value: float) -> float:
        return left + (width - 2 * left) * (value - low) / (high - low)

    parts = [_histogram(summary, x(summary.smallest), x(summary.largest), height)]
    book = Codebook(layer.bits, layer.symmetric)
    grids = [("grid", summary.finest)]
    if summary.scales > 1:
        grids = [("finest grid", summary.finest), ("coarsest grid", summary.coarsest)]
    y = height + 4
    for name, (scale, zero_point) in grids:
        first, last = (x(scale * (code - zero_point)) for code in (book.qmin, book.qmax))
        parts.append(_grid_points(name, scale, book.qmax - book.qmin + 1, first, last, y))
        y += 13
    ends = f'<text x="{left:g}" y="{y + 12:.0f}">{number(low)}</text>'
    ends += f'<text x="{width - left:g}" y="{y + 12:.0f}" text-anchor="end">{number(high)}</text>'
    if low < 0 < high and 0.2 < -low / (high - low) < 0.8:
        ends += f'<text x="{x(0.0):.1f}" y="{y + 12:.0f}" text-anchor="middle">0</text>'
    title = f"{layer.name}: {layer.weights:,} weights from {number(summary.smallest)} to {number(summary.largest)}"
    return _svg("weights", title, width, y + 16, [*parts, f'<path class="axis" d="M0 {height:g}H{width:g}"/>', ends])


# ------------------------------------------------------------------------------------------------- parts of charts


def _chart(title: str, count: int, axis: Axis, parts: list[str]) -> str:
    """Lines, labels and numbers around what a chart shows."""
    frame = []
    beyond = [(axis.below, "0" if axis.log else "−∞, NaN", HEIGHT - BOTTOM - STRIP / 2 + 2)]
    beyond += [(axis.above, "∞, NaN" if axis.log else "∞", TOP + STRIP / 2 - 2)]
    lines = [(axis.y(tick), number(tick), "line") for tick in axis.ticks]
    lines += [(y, text, "line beyond") for present, text, y in beyond if present]
    for y, text, kind in lines:
        frame.append(f'<path class="{kind}" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
        frame.append(f'<text x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    every = max(1, round(_round_step(count / LABELS)))
    for index in range(count):
        if (index + 1) % every == 0:
            x = _x(index, count)
            frame.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17:g}" text-anchor="middle">{index + 1}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    frame.append(f'<text x="{middle:g}" y="{HEIGHT - 4:g}" text-anchor="middle">layer</text>')
    return _svg("chart", title, WIDTH, HEIGHT, [*frame, *parts])


def _svg(kind: str, title: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="{kind}" role="img" viewBox="0 0 {width:g} {height:g}"><title>{escaped(title)}</title>'
        + "".join(parts)
        + "</svg>"
    )


def _mark(kind: str, x: float, y: float, label: str) -> str:
    """Series differ in form too, not in colour alone."""
    title = f"<title>{escaped(label)}</title>"
    if kind == "nearest":
        return f'<rect class="{kind}" x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7">{title}</rect>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'


def _histogram(summary: WeightSummary, first: float, last: float, height: float) -> str:
    """One outline over all bins; a single bin is a line."""
    highest = max(*summary.counts, 1)
    bins = len(summary.counts)
    if last - first < 3:  # still to be seen, where the grid is far wider than the weights
        first, last = (first + last) / 2 - 1.5, (first + last) / 2 + 1.5
    step = (last - first) / bins
    path = f"M{first:.1f} {height:g}"
    for index, count in enumerate(summary.counts):
        top = height - (height - 8) * count / highest
        path += f"V{top:.1f}H{first + step * (index + 1):.2f}"
    return f'<path class="bins" d="{path}V{height:g}Z"/>'


def _grid_points(name: str, scale: float, points: int, first: float, last: float, y: float) -> str:
    """A tick per point, or a band where they are too near to tell apart."""
    step = (last - first) / (points - 1)
    title = f"<title>{name}: {points:,} points, one every {number(scale)}</title>"
    if step < NARROWEST:
        width = max(1.0, last - first)
        return f'<rect class="band" x="{first:.1f}" y="{y:g}" width="{width:.1f}" height="9">{title}</rect>'
    ticks = "".join(f"M{first + step * index:.1f} {y:g}v9" for index in range(points))
    return f'<path class="ticks" d="{ticks}">{title}</path>'


def _x(index: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / count


def _fits(value: float, log: bool) -> bool:
    return not _beyond(value, log)


def _beyond(value: float, log: bool) -> str:
    """On which side of the axis a value is that it cannot hold; empty where it can."""
    if log:
        if math.isnan(value) or value >= OVERFLOW:
            return "above"
        return "" if value > 0 else "below"
    if value >= OVERFLOW:
        return "above"
    return "below" if math.isnan(value) or value <= -OVERFLOW else ""


def _round_step(wanted: float) -> float:
    """The next of 1, 2, 5, 10, 20, … times a power of ten."""
    power = 10.0 ** math.floor(math.log10(wanted)) if wanted > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))
