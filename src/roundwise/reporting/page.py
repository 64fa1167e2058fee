"""The page: what was done to a network, how well it went, and how to do it again.

One HTML file with its style, its figures (SVG) and a few lines of script inside. It loads nothing, and says so to the
browser: its content security policy allows that script alone, by its hash. Whatever comes from outside (names of
layers, models and files; notes; the recipe) goes through `escaped`.

    summary ─ time ─ charts and table of all layers ─ weights and grid of each ─ activations ─ kept in float ─ notes
    ─ recipe
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from roundwise.errors import ExportError, RecipeError
from roundwise.files import replacing
from roundwise.recipe.recipe import Recipe
from roundwise.report import Report
from roundwise.reporting.charts import share_bar
from roundwise.reporting.layers import layer_charts, layer_table, weight_cards
from roundwise.reporting.words import between, decibels, escaped, number, percent, scrolling, seconds
from roundwise.wording import human_bytes, number_of


class Reported(Protocol):
    """What the page needs of a `Model`."""

    report: Report
    recipe: Recipe
    versions: dict[str, str]


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – quantization report</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="muted">{subtitle}</p>
</header>
<main>
{sections}
</main>
<script>{script}</script>
</body>
</html>
"""


def html_report(
    quantized: Reported,
    path: str | os.PathLike[str],
    *,
    title: str = "Quantized network",
    facts: Mapping[str, str] | None = None,
    accuracy: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write the report as one HTML page that opens in any browser, offline. It appears complete or not at all.

    Args:
        quantized: the result of `quantize` or `load`. Networks saved by earlier releases have no figures of weights.
        path: where to; an earlier file is replaced.
        title: the page's heading; a name for the network does well.
        facts: anything to tell beside the recipe, by name: what the network was, where its inputs came from.
        accuracy: by the measure's name, its value for the float and for the quantized network, 0 to 1.

    Raises:
        ExportError: the file cannot be written.

    Example:
        >>> import roundwise as rw  # doctest: +SKIP
        >>> rw.html_report(quantized, "report.html", title="ResNet-18", accuracy={"top-1": (0.698, 0.694)})
        ... # doctest: +SKIP
    """
    text = render(quantized, title=title, facts=facts or {}, accuracy=accuracy or {})
    with replacing(Path(path), ExportError) as temporary:
        # File names may hold what no text can; better a backslash in their place than no report.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def render(
    quantized: Reported, *, title: str, facts: Mapping[str, str], accuracy: Mapping[str, tuple[float, float]]
) -> str:
    """The page as text; arguments as of `html_report`."""
    report = quantized.report
    style, script = _resource("page.css"), _resource("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sections = [
        _section("Summary", _summary(report, accuracy)),
        _section("Time", _times(report)),
        _section("Layers", layer_charts(report.layers, report.measured) + layer_table(report.layers, report.measured)),
        _section("Weights and grids", weight_cards(report.layers)),
        _section("Activations", _activations(report)),
        _section("Kept in float", _kept_float(report)),
        _section("Notes", _notes(report)),
        _section("To do it again", _reproduction(quantized, facts)),
    ]
    return PAGE.format(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=escaped(title),
        style=style,
        subtitle=f"Quantized by Roundwise {escaped(quantized.versions.get('roundwise', ''))}",
        sections="\n".join(section for section in sections if section),
        script=script,
    )


# ------------------------------------------------------------------------------------------------------- sections


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}\n</section>" if content else ""


def _summary(report: Report, accuracy: Mapping[str, tuple[float, float]]) -> str:
    bits = "/".join(map(str, sorted({layer.bits for layer in report.layers})))
    weights = sum(layer.weights for layer in report.layers)
    layers = sum(layer.seconds for layer in report.layers)
    ratio = report.quantized_bytes / report.float_bytes if report.float_bytes else 1.0
    tiles = [
        (
            "size",
            f"{human_bytes(report.float_bytes)} → {human_bytes(report.quantized_bytes)}",
            f"{percent(ratio)} of before",
        ),
        ("bits of a weight", bits, f"{number_of(weights, 'weight')} in {number_of(len(report.layers), 'layer')}"),
    ]
    if report.measured:
        ratio_in_decibels = number(decibels(report.output_error))
        tiles += [
            ("calibration samples", f"{report.samples:,}", "on which all errors were measured"),
            (
                "error of the outputs",
                number(report.output_error),
                f"{ratio_in_decibels} dB, relative to the float network",
            ),
        ]
    else:
        tiles.append(("calibration samples", "none", "so that no error was measured"))
    tiles += [
        (name, f"{percent(before)} → {percent(after)}", "float → quantized, on the calibration samples")
        for name, (before, after) in accuracy.items()
    ]
    tiles.append(("time", seconds(sum(report.seconds.values())), f"ranges and rounding of layers: {seconds(layers)}"))
    tiles.append(("activations held", human_bytes(report.peak_activation_bytes), "at most, in memory and on disk"))
    return (
        '<dl class="tiles">\n'
        + "\n".join(
            f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)} <small>{escaped(remark)}</small></dd></div>"
            for name, value, remark in tiles
        )
        + "\n</dl>"
    )


def _times(report: Report) -> str:
    total = sum(report.seconds.values())
    rows = [
        f'<tr><th scope="row">{escaped(stage)}</th><td class="number">{seconds(spent)}</td>'
        f'<td class="number">{percent(spent / total if total else 0.0)}</td>'
        f'<td class="share">{share_bar(spent / total if total else 0.0)}</td></tr>'
        for stage, spent in report.seconds.items()
    ]
    return (
        '<table class="stages"><caption>Wall time by stage</caption><thead><tr><th scope="col">stage</th>'
        '<th scope="col" class="number">time</th><th scope="col" class="number">share</th><td></td></tr></thead>\n'
        f"<tbody>\n{_lines(rows)}</tbody></table>"
    )


def _activations(report: Report) -> str:
    """The quantized tensors between operations; nothing where they stay in float."""
    if not report.activations:
        return ""
    rows = []
    for activation in report.activations:
        cells = (
            f"{activation.bits}{'' if activation.symmetric else ', unsigned'}",
            between((activation.low, activation.high)),
            number(activation.scale),
            str(activation.zero_point),
            ", ".join(activation.shared_with) or "–",
        )
        rows.append(
            f'<tr><th scope="row">{escaped(activation.name)}</th>'
            + "".join(f'<td class="number">{escaped(cell)}</td>' for cell in cells)
            + "</tr>"
        )
    seen, remark = ("seen", "; all errors are measured with it") if report.measured else ("expected", "")
    names = ("operation or input", "bits", f"values {seen}", "scale", "zero point", "same range as")
    heads = "".join(f'<th scope="col"{" class=number" if name != names[0] else ""}>{name}</th>' for name in names)
    return scrolling(
        "activations",
        f"<table><caption>What flows between operations, as codes{remark}</caption>"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{_lines(rows)}</tbody></table>",
    )


def _kept_float(report: Report) -> str:
    if not report.kept_float:
        return "<p>Nothing: every weight tensor of the network is on a grid.</p>"
    rows = [
        f'<tr><th scope="row">{escaped(kept.name)}</th><td class="number">{kept.weights:,}</td>'
        f"<td>{escaped(kept.reason)}</td></tr>"
        for kept in report.kept_float
    ]
    return scrolling(
        "what was kept in float",
        '<table><caption>Weights that stayed as they were</caption><thead><tr><th scope="col">name</th>'
        '<th scope="col" class="number">weights</th><th scope="col">why</th></tr></thead>\n'
        f"<tbody>\n{_lines(rows)}</tbody></table>",
    )


def _notes(report: Report) -> str:
    notes = [*report.notes, *report.layer_notes]
    return f"<ul>\n{_lines(f'<li>{escaped(note)}</li>' for note in notes)}</ul>" if notes else ""


def _reproduction(quantized: Reported, facts: Mapping[str, str]) -> str:
    rows = [*facts.items(), *((f"version of {name}", version) for name, version in quantized.versions.items())]
    cells = (f'<tr><th scope="row">{escaped(name)}</th><td>{escaped(value)}</td></tr>' for name, value in rows)
    try:
        recipe = quantized.recipe.as_toml()
        introduction = (
            "The recipe, with every setting. As a file it serves <code>roundwise quantize --recipe recipe.toml</code> "
            'and <code>rw.Recipe.from_toml("recipe.toml")</code>; the same recipe, versions, samples and kind of '
            "device give the same codes."
        )
    except RecipeError as error:  # a method of the user's own
        recipe = json.dumps(quantized.recipe.as_dict(), indent=2)
        introduction = f"The recipe cannot be had as a file: {escaped(error)}"
    return (
        f"<table><caption>What it was made of</caption><tbody>\n{_lines(cells)}</tbody></table>\n"
        f"<p>{introduction}</p>\n<pre><code>{escaped(recipe)}</code></pre>"
    )


# ----------------------------------------------------------------------------------------------------------- parts


def _lines(rows: Iterable[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


def _resource(name: str) -> str:
    return (importlib.resources.files("roundwise.reporting") / name).read_text(encoding="utf-8")
