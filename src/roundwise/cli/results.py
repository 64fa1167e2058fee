"""What a command does with the network that it made: the report, the files, and the figures for scripts."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

import click

from roundwise.artifacts.model import Model
from roundwise.cli.options import OUTPUT, option
from roundwise.cli.parameters import writable
from roundwise.cli.terminal import say, show_json
from roundwise.data.preprocessing import Preprocessing
from roundwise.exporters import export
from roundwise.reporting import html_report
from roundwise.wording import human_bytes


@final
@dataclass(frozen=True)
class FileOptions:
    """The files that are written."""

    out: tuple[Path, ...] = option(
        OUTPUT, "Write the network: .rw or .onnx. Repeatable.", "--out", "-o", default=(), type=writable, metavar="FILE"
    )
    report: Path | None = option(
        OUTPUT, "Write a page (.html) with every layer's errors, weights and grid.", type=writable, metavar="FILE"
    )


@final
@dataclass(frozen=True)
class Run:
    """What a command tells about its run, beside the network.

    Attributes:
        model: what the user called the model.
        facts: for the page, by name; `samples` says what was read.
        preprocessing: of images; None if inputs were used unchanged.
        accuracy: by the name of the measure, of the float network and of the result, 0 to 1.
        started: when, by `time.perf_counter`.
    """

    model: str
    facts: dict[str, str]
    preprocessing: Preprocessing | None
    accuracy: dict[str, tuple[float, float]]
    started: float


def show_report(quantized: Model, *, as_json: bool) -> None:
    """Print the report, unless JSON is wanted.

    This comes before files are written, so that the user sees the report of a long run even if one of them fails.
    """
    if not as_json:
        click.echo(str(quantized.report))
        sys.stdout.flush()


def deliver(quantized: Model, output: FileOptions, run: Run, *, on: str, as_json: bool) -> None:
    """Write the files, and tell what was written.

    Args:
        quantized: the result.
        output: the files that the user wants.
        run: what is told beside it.
        on: the samples on which the accuracy was measured, in words.
        as_json: whether to print one JSON object in place of lines.

    Raises:
        ExportError: a file cannot be written.
    """
    written = [(file.as_dict(), str(file)) for file in [export(quantized, path) for path in output.out]]
    if output.report is not None:
        html_report(quantized, output.report, title=run.model, facts=run.facts, accuracy=run.accuracy)
        size = output.report.stat().st_size
        written.append(({"path": str(output.report), "bytes": size}, f"{output.report}: {human_bytes(size)}"))
    if as_json:
        show_json(
            {
                "model": run.model,
                "data": run.facts["samples"],
                "preprocessing": run.preprocessing,
                "recipe": quantized.recipe.as_dict(),
                "report": quantized.report.as_dict(),
                "versions": quantized.versions,
                "accuracy": {name: {"float": was, "quantized": now} for name, (was, now) in run.accuracy.items()},
                "outputs": [figures for figures, _ in written],
                "seconds": time.perf_counter() - run.started,
            }
        )
        return
    for name, (was, now) in run.accuracy.items():
        click.echo(f"{name} on {on}: {was:.2%} → {now:.2%}")
    for _, text in written:
        click.echo(f"written: {text}")
    if not output.out:
        say("the network was not written; give --out model.rw or --out model.onnx to keep the result")
