"""`roundwise inspect`: the content of a .rw file."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import final

import click
import tomli_w

from roundwise import load
from roundwise.cli.options import OUTPUT, as_command, flag
from roundwise.cli.parameters import EXISTING_FILE
from roundwise.cli.terminal import show_json
from roundwise.errors import FileFormatError
from roundwise.wording import human_bytes

HELP = """
Show what is in a .rw file: layers, bits, errors, the recipe, versions. Its checksum is verified on the way.

\b
  roundwise inspect model.rw
  roundwise inspect model.rw --json | jq '.report.stages'
"""


@final
@dataclass(frozen=True)
class InspectOptions:
    """How the content is shown."""

    as_json: bool = flag(OUTPUT, "Print everything as one JSON object.", "--json")


@as_command(HELP, click.Argument(["file"], type=EXISTING_FILE))
def command(file: Path, options: InspectOptions) -> None:
    """Run `roundwise inspect`."""
    if file.suffix.lower() != ".rw":
        raise FileFormatError(
            f"{file} is not a .rw file. Give one. (In an .onnx file that Roundwise wrote, the recipe is in the "
            "metadata, under 'roundwise.recipe.settings'.)"
        )
    quantized = load(file)
    size = file.stat().st_size
    if options.as_json:
        show_json(
            {
                "file": str(file),
                "bytes": size,
                "checksum": "ok",
                "versions": quantized.versions,
                "recipe": quantized.recipe.as_dict(),
                "report": quantized.report.as_dict(),
            }
        )
        return
    click.echo(f"{file}: {human_bytes(size)}, checksum ok")
    click.echo(f"made with: {', '.join(f'{name} {version}' for name, version in quantized.versions.items())}")
    click.echo("recipe:")
    click.echo(textwrap.indent(tomli_w.dumps(quantized.recipe.as_dict()), "  "))
    click.echo(quantized.report)
