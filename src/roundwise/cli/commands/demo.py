"""`roundwise demo`: all steps on a small example, without downloads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import click
from rich.console import Console

from roundwise.cli.options import OUTPUT, as_command, option

HELP = """
Train a small network on images of digits, quantize it to 4, 3 and 2 bits, compare, export to ONNX, run that.

\b
  roundwise demo --out demo/
"""


@final
@dataclass(frozen=True)
class DemoOptions:
    """Where the files go."""

    out: Path = option(
        OUTPUT,
        "Write the files to this folder.",
        default=Path("roundwise-demo"),
        type=click.Path(file_okay=False, path_type=Path),
    )


@as_command(HELP)
def command(options: DemoOptions) -> None:
    """Run `roundwise demo`."""
    from roundwise.cli.demo import run

    run(options.out, Console())
