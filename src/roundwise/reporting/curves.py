"""The curves of training: loss, accuracy and oscillations over epochs; `page.html.jinja` draws them as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from roundwise.report_training import EpochReport
from roundwise.reporting.charts import LEFT, RIGHT, WIDTH, Axis
from roundwise.reporting.words import number

LABELS = 20
"""With more epochs than this, only every second, fifth, … epoch has its number below the chart."""


class Point(NamedTuple):
    """One value of one epoch."""

    x: float
    y: float
    title: str


def curves(epochs: Sequence[EpochReport]) -> dict[str, dict[str, Any]]:
    """The figures of a training by their names; those without values are left out."""
    held_out: list[float | None] = [epoch.held_out for epoch in epochs]
    loss = {"held-out": held_out, "training": [epoch.loss for epoch in epochs]}
    accuracy = {"held-out": [_percentage(epoch.accuracy) for epoch in epochs]}
    oscillating = {"weights": [_percentage(epoch.oscillating) for epoch in epochs]}
    numbers = [epoch.epoch for epoch in epochs]
    found = {
        "loss": _figure("Loss by epoch", numbers, loss, log=True),
        "accuracy": _figure("Held-out accuracy by epoch", numbers, accuracy, unit=" %"),
        "oscillating": _figure("Weights that oscillate, by epoch", numbers, oscillating, unit=" %"),
    }
    return {name: figure for name, figure in found.items() if figure["lines"]}


def _figure(
    title: str,
    epochs: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    *,
    log: bool = False,
    unit: str = "",
) -> dict[str, Any]:
    """Place one or two curves over epochs.

    Returns:
        What the template draws: the `axis`; `numbers` of epochs, each with its x; for each of the `lines` its place
        among the colours, its path and its points.
    """
    axis = Axis.of([value for values in series.values() for value in values if value is not None], log)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(epochs) - 1)
    xs = [round(LEFT + step * index, 1) for index in range(len(epochs))]
    every = max(1, -(-len(epochs) // LABELS))
    lines = []
    for kind, (name, values) in zip(("chosen", "nearest"), series.items(), strict=False):
        points = [
            Point(x, axis.y(value), f"epoch {epoch}, {name}: {number(value)}{unit}")
            for x, epoch, value in zip(xs, epochs, values, strict=True)
            if value is not None
        ]
        if points:
            lines.append((kind, "M" + "L".join(f"{point.x} {point.y}" for point in points), points))
    return {
        "title": title,
        "axis": axis.lines,
        "numbers": [(x, epoch) for x, epoch in zip(xs, epochs, strict=True) if epoch % every == 0],
        "lines": lines,
    }


def _percentage(share: float | None) -> float | None:
    return None if share is None else share * 100
