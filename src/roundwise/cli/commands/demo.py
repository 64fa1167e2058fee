"""`roundwise demo`: the whole of it on a small example, without downloads."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from roundwise.cli.terminal import exits

HELP = """
Train a small network on images of digits, quantize it to 4, 3 and 2 bits, compare, export to ONNX, run that.

\b
Example:
  roundwise demo --out demo/
"""


@click.command("demo", help=HELP)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep the files in this folder.")
@exits
def command(out: Path | None) -> None:
    """Run the demonstration."""
    from roundwise.cli.demo import run

    run(out, Console())
