"""The report page: what was done to a network, how large the errors are, and how to reproduce the result.

The page is one HTML file that holds its style, its figures (SVG) and a few lines of script. It loads nothing else, and
its content security policy makes the browser refuse anything but that script, which it knows by its hash. jinja2 fills
the template `page.html.jinja` and escapes all text; this file prepares the values.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jinja2

from roundwise.errors import ExportError, RecipeError
from roundwise.files import named, replacing
from roundwise.recipe.recipe import Recipe
from roundwise.report import LayerReport, Report
from roundwise.report_training import training_in_words
from roundwise.reporting import words
from roundwise.reporting.charts import chart, weight_figure
from roundwise.reporting.curves import curves
from roundwise.reporting.words import decibels, number, percent, seconds
from roundwise.wording import human_bytes, milliseconds, number_of

PAGE_ENDINGS = (".html", ".htm")
"""How the name of a page may end."""


class Reported(Protocol):
    """What the page shows of a `Model`."""

    report: Report
    recipe: Recipe
    versions: dict[str, str]


def html_report(
    quantized: Reported,
    path: str | os.PathLike[str],
    *,
    title: str = "Quantized network",
    facts: Mapping[str, str] | None = None,
    accuracy: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write the report as one HTML page, which any browser shows offline. A failed write leaves an earlier file as is.

    Args:
        quantized: the result of `quantize` or `load`. Networks saved by earlier releases have no figures of weights.
        path: where to write; an earlier file is replaced.
        title: the heading of the page, such as the name of the network.
        facts: more to show beside the recipe, by name: for instance where the network and its inputs came from.
        accuracy: by the name of the measure, its value for the float and for the quantized network, 0 to 1.

    Raises:
        ExportError: the model is not quantized, the name does not end in `.html`, or the file cannot be written.

    Example:
        >>> import roundwise as rw  # doctest: +SKIP
        >>> rw.html_report(quantized, "report.html", title="ResNet-18", accuracy={"top-1": (0.698, 0.694)})
        ... # doctest: +SKIP
    """
    place = named(path, ExportError, *PAGE_ENDINGS)
    if not isinstance(getattr(quantized, "report", None), Report):
        raise ExportError(
            f"there is no report on a {type(quantized).__name__}: only a quantized network has one. Give what "
            "`quantize` returns."
        )
    if not isinstance(title, str):
        raise ExportError(f"title={title!r}: the heading of the page must be text. Give a str.")
    if facts is not None and not isinstance(facts, Mapping):
        raise ExportError(f"facts={facts!r}: they must be a dict, such as {{'network': 'ResNet-18'}}.")
    if accuracy is not None and not _are_pairs(accuracy):
        raise ExportError(
            f"accuracy={accuracy!r}: it must be a dict with a pair for each measure, of the float and of the quantized "
            "network. Give for instance {'top-1': (0.698, 0.694)}."
        )
    text = render(quantized, title=title, facts=facts or {}, accuracy=accuracy or {})
    with replacing(place, ExportError) as temporary:
        # File names can contain bytes that are not text; they become backslash escapes.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def _are_pairs(accuracy: object) -> bool:
    """Whether it is a dict in which every value is a pair of numbers."""
    return isinstance(accuracy, Mapping) and all(
        isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(one, int | float) for one in pair)
        for pair in accuracy.values()
    )


def render(
    quantized: Reported, *, title: str, facts: Mapping[str, str], accuracy: Mapping[str, tuple[float, float]]
) -> str:
    """The page as text; arguments as of `html_report`."""
    report, recipe_error = quantized.report, None
    try:
        recipe = quantized.recipe.as_toml()
    except RecipeError as error:  # the recipe has a method that is in no table
        recipe, recipe_error = json.dumps(quantized.recipe.as_dict(), indent=2), error
    loader = jinja2.PackageLoader("roundwise.reporting", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    for function in (number, seconds, milliseconds, percent, words.interval, decibels):
        environment.filters[function.__name__] = function
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "sort.js"))
    return environment.get_template("page.html.jinja").render(
        title=title,
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        versions={"roundwise": "", **quantized.versions},
        report=report,
        total=sum(report.seconds.values()),
        tiles=_tiles(report, accuracy),
        charts=_charts(report.layers),
        quantized=bool(report.layers) or not any(stage.compressed for stage in report.stages),
        compressions=[
            {
                "layers": stage.compressed,
                "macs": stage.macs,
                "parameters": stage.parameters,
                "latency": stage.latency,
                "timed": not math.isnan(stage.latency[0]),
                "measured": any(not math.isnan(one.error) for one in stage.compressed),
            }
            for stage in report.stages
            if stage.compressed
        ],
        trainings=[
            {
                "words": training_in_words(stage.epochs),
                "epochs": stage.epochs,
                "best": stage.best_epoch,
                "figures": curves(stage.epochs),
            }
            for stage in report.stages
            if stage.epochs
        ],
        **_settings(report.layers),
        weights=[
            (index, layer, weight_figure(layer, layer.summary))
            for index, layer in enumerate(report.layers, start=1)
            if layer.summary is not None
        ],
        facts=facts,
        recipe=recipe,
        recipe_error=recipe_error,
    )


def _tiles(report: Report, accuracy: Mapping[str, tuple[float, float]]) -> list[tuple[str, str, str]]:
    """The figures at the top: name, value and a remark."""
    ratio = report.quantized_bytes / report.float_bytes if report.float_bytes else 1.0
    size = f"{human_bytes(report.float_bytes)} → {human_bytes(report.quantized_bytes)}"
    tiles = [("size", size, f"{percent(ratio)} of before")]
    for (macs, left), entries in ((stage.macs, stage.compressed) for stage in report.stages if stage.compressed):
        cut = sum(bool(one.method) for one in entries)
        remark = f"of before; {cut} of {number_of(len(entries), 'layer')} cut"
        tiles.append(("MACs of a sample", percent(left / max(1, macs)), remark))
    if report.layers or len(tiles) == 1:
        bits = "/".join(map(str, sorted({layer.bits for layer in report.layers})))
        weights = sum(layer.weights for layer in report.layers)
        remark = f"{number_of(weights, 'weight')} in {number_of(len(report.layers), 'layer')}"
        tiles.append(("bits of a weight", bits, remark))
    if report.measured:
        noise = f"{number(decibels(report.output_error))} dB, relative to the float network"
        tiles.append(("calibration samples", f"{report.samples:,}", "on which all errors were measured"))
        tiles.append(("error of the outputs", number(report.output_error), noise))
    else:
        tiles.append(("calibration samples", "none", "so no error was measured"))
    for name, (before, after) in accuracy.items():
        remark = f"float → {'quantized' if report.layers else 'this network'}, on the calibration samples"
        tiles.append((name, f"{percent(before)} → {percent(after)}", remark))
    for best, first in ((one.best_epoch, one.epochs[0]) for one in report.stages if one.epochs):
        assert best is not None
        if first.accuracy is not None and best.accuracy is not None:
            change = f"{percent(first.accuracy)} → {percent(best.accuracy)}"
            tiles.append(("held-out accuracy", change, f"before training → epoch {best.epoch}, which was kept"))
    fitting = sum(one.seconds for stage in report.stages for one in stage.compressed)
    parts = f"ranges and rounding of layers: {seconds(sum(layer.seconds for layer in report.layers))}"
    parts = parts if report.layers or not fitting else f"fitting of layers: {seconds(fitting)}"
    tiles.append(("time", seconds(sum(report.seconds.values())), parts))
    tiles.append(("activations held", human_bytes(report.peak_activation_bytes), "at most, in memory and on disk"))
    return tiles


def _charts(layers: Sequence[LayerReport]) -> dict[str, Any]:
    names = [layer.name for layer in layers]
    errors = {"nearest": [layer.error_nearest for layer in layers], "chosen": [layer.error for layer in layers]}
    ratios = {"chosen": [decibels(layer.error) for layer in layers]}
    flips = {"bar": [layer.flips * 100 for layer in layers]}
    times = {"bar": [layer.seconds for layer in layers]}
    return {
        "errors": chart("Error of each layer's output, nearest and chosen", names, errors, log=True),
        "ratios": chart("Signal-to-quantization-noise ratio after each layer", names, ratios, unit=" dB"),
        "flips": chart("Percentage of weights not rounded to nearest, by layer", names, flips, unit=" %"),
        "times": chart("Seconds spent on each layer", names, times, unit=" s"),
    }


def _settings(layers: Sequence[LayerReport]) -> dict[str, Any]:
    """How each layer was quantized; the names of settings that vary, and in words those that all layers share."""
    settings = [
        {
            "bits": str(layer.bits),
            "granularity": layer.granularity,
            "codes": "symmetric" if layer.symmetric else "asymmetric",
            "ranges": layer.ranges,
            "rounding": layer.rounding,
        }
        for layer in layers
    ]
    first = settings[0] if settings else {}
    varying = [name for name in first if any(one[name] != first[name] for one in settings)]
    common = [f"{name} {word}" for name, word in first.items() if name not in varying]
    return {"settings": settings, "varying": varying, "common": common}
