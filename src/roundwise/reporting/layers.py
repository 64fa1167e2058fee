"""The page's sections on layers: charts over all of them, a table, and a card with weights and grid for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from roundwise.report import LayerReport, WeightSummary
from roundwise.reporting.charts import Series, bar_chart, dot_chart, weight_figure
from roundwise.reporting.words import between, decibels, escaped, number, percent, scrolling, seconds

Layers = Sequence[LayerReport]


# ----------------------------------------------------------------------------------------------------------- charts


def layer_charts(layers: Layers, measured: bool = True) -> str:
    """Errors and signal to noise, where they were measured; flips and seconds, layer by layer."""
    return "\n".join([*(_error_charts(layers) if measured else []), *_other_charts(layers)])


def _error_charts(layers: Layers) -> list[str]:
    names = [layer.name for layer in layers]
    errors = [
        Series("nearest", "nearest", [layer.error_nearest for layer in layers]),
        Series("chosen", "chosen", [layer.error for layer in layers]),
    ]
    ratios = [Series("chosen", "chosen", [decibels(layer.error) for layer in layers])]
    return [
        _figure(
            "Error of each layer's output",
            'Logarithmic. <span class="key nearest">□ nearest</span>: with this layer rounded to nearest; '
            '<span class="key chosen">● chosen</span>: with the rounding that was chosen. Relative to the float '
            "network, before the activation function, with the layers before it quantized as chosen.",
            dot_chart("Error of each layer's output, nearest and chosen", names, errors, log=True),
        ),
        _figure(
            "Signal to noise after each layer",
            "In decibels, −10 log₁₀ of the error that was chosen: 20 dB is an error of 1 %, and more is better.",
            dot_chart("Signal to quantization noise after each layer, in decibels", names, ratios, unit=" dB"),
        ),
    ]


def _other_charts(layers: Layers) -> list[str]:
    names = [layer.name for layer in layers]
    flips = [layer.flips * 100 for layer in layers]
    times = [layer.seconds for layer in layers]
    return [
        _figure(
            "Weights not rounded to nearest",
            "Per cent of a layer's weights whose code is not the nearest one.",
            bar_chart("Per cent of weights not rounded to nearest, by layer", names, flips, unit=" %"),
        ),
        _figure(
            "Seconds per layer",
            "Spent on its ranges and rounding.",
            bar_chart("Seconds spent on each layer", names, times, unit=" s"),
        ),
    ]


def _figure(heading: str, caption: str, chart: str) -> str:
    return f"<h3>{heading}</h3>\n<figure>\n{scrolling(heading, chart)}\n<figcaption>{caption}</figcaption>\n</figure>"


# ------------------------------------------------------------------------------------------------------------ table

# How a layer was quantized, in words. What is the same for all layers is said once, above the table.
HOW: tuple[tuple[str, Callable[[LayerReport], str]], ...] = (
    ("bits", lambda layer: str(layer.bits)),
    ("granularity", lambda layer: layer.granularity),
    ("codes", lambda layer: "symmetric" if layer.symmetric else "asymmetric"),
    ("ranges", lambda layer: layer.ranges),
    ("rounding", lambda layer: layer.rounding),
)


def layer_table(layers: Layers, measured: bool = True) -> str:
    """Every layer's figures; errors where they were measured."""
    varying = [(name, of) for name, of in HOW if len({of(layer) for layer in layers}) > 1]
    common = [f"{name} {of(layers[0])}" for name, of in HOW if (name, of) not in varying] if layers else []
    errors = ("error, nearest", "error, chosen", "SQNR, dB") if measured else ()
    numbers = (*errors, "flips", "seconds")
    head = '<th scope="col" class="number">no.</th>'
    head += "".join(f'<th scope="col">{name}</th>' for name in ("layer", "operation", "shape"))
    head += "".join(f'<th scope="col" class="number">{name}</th>' for name in numbers)
    head += "".join(f'<th scope="col">{name}</th>' for name, _ in varying)
    rows = [
        _row(index, layer, [of(layer) for _, of in varying], measured) for index, layer in enumerate(layers, start=1)
    ]
    shared = f"<p>For all layers: {escaped(', '.join(common))}.</p>\n" if common else ""
    explained = "Errors are those of the first chart, one in bold is larger than with nearest rounding; "
    flips = "flips are weights whose code is not the nearest one on the layer's final grid."
    shared += f"<p>{explained if measured else ''}{flips}</p>\n"
    table = (
        '<table class="sortable"><caption>The layers, in the order in which they run</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>"
    )
    return f"<h3>All figures</h3>\n{shared}{scrolling('figures of all layers', table)}"


def _row(index: int, layer: LayerReport, how: Sequence[str], measured: bool) -> str:
    shape = "×".join(map(str, layer.shape))
    errors = [
        _number_cell(layer.error_nearest, number(layer.error_nearest)),
        _number_cell(layer.error, number(layer.error), "error"),
        _number_cell(decibels(layer.error), number(round(decibels(layer.error), 1))),
    ]
    cells = [
        _number_cell(index, str(index)),
        f'<th scope="row">{escaped(layer.name)}</th>',
        f"<td>{escaped(layer.operation)}</td>",
        f'<td data-value="{escaped(layer.weights)}">{escaped(shape)}</td>',
        *(errors if measured else []),
        _number_cell(layer.flips, percent(layer.flips)),
        _number_cell(layer.seconds, seconds(layer.seconds).removesuffix(" s")),
        *(f"<td>{escaped(word)}</td>" for word in how),
    ]
    worse = ' class="worse"' if layer.error > layer.error_nearest else ""
    return f"<tr{worse}>{''.join(cells)}</tr>"


def _number_cell(value: float, text: str, kind: str = "") -> str:
    """A cell that sorts by its number; `json` writes infinities and NaN as JavaScript reads them."""
    return f'<td class="{f"number {kind}".strip()}" data-value="{json.dumps(value)}">{text}</td>'


# ------------------------------------------------------------------------------------------------------------ cards


def weight_cards(layers: Layers) -> str:
    """A small figure for every layer that has a summary of its weights; empty where none has."""
    cards = [
        _card(index, layer, layer.summary) for index, layer in enumerate(layers, start=1) if layer.summary is not None
    ]
    if not cards:
        return "<p>Not in this file: it was written by a release that did not keep them.</p>"
    introduction = (
        "<p>How many of a layer's float weights have which value, and below them the points of their grid; where there "
        "are several scales, of the finest grid (first row) and of the coarsest. A band stands for points too near to "
        "tell apart. Weights beyond a grid's ends become its first or last point.</p>"
    )
    return f'{introduction}\n<div class="cards">\n' + "\n".join(cards) + "\n</div>"


def _card(index: int, layer: LayerReport, summary: WeightSummary) -> str:
    scales = "scale" if summary.scales == 1 else f"{summary.scales:,} scales"
    facts = [
        ("weights", f"{number(summary.smallest)} … {number(summary.largest)}"),
        (scales, between((summary.finest[0], summary.coarsest[0]))),
        ("grid from", between(summary.lower_ends)),
        ("grid up to", between(summary.upper_ends)),
        ("clipped", percent(summary.clipped)),
    ]
    if not layer.symmetric:
        finest, coarsest = summary.finest[1], summary.coarsest[1]
        facts.append(
            ("zero point", f"{finest:,}" if summary.scales == 1 else f"{finest:,} finest, {coarsest:,} coarsest")
        )
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return (
        f'<div class="card"><h3>{index} {escaped(layer.name)}</h3>\n'
        f"{weight_figure(layer, summary)}\n<dl>{rows}</dl></div>"
    )
