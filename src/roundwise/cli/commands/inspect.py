"""`roundwise inspect`: what is in a .rw file."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click
import tomli_w

from roundwise import load
from roundwise.cli.parameters import EXISTING_FILE
from roundwise.cli.terminal import exits, show_json
from roundwise.errors import FileFormatError
from roundwise.wording import human_bytes

HELP = """
Show what is in a .rw file: layers, bits, errors, the recipe, versions. Its checksum is verified on the way.

\b
Examples:
  roundwise inspect model.rw
  roundwise inspect model.rw --json | jq '.report.layers[] | {name, bits, error}'
"""


@click.command(
    "inspect",
    help=HELP,
    epilog="Exit codes: 0 the file is sound; 1 it is not, and the message says why; 2 wrong usage.",
)
@click.argument("file", type=EXISTING_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@exits
def command(file: Path, as_json: bool) -> None:
    """Run `roundwise inspect`."""
    if file.suffix != ".rw":
        raise FileFormatError(
            f"{file} is not a .rw file. (In an .onnx file that Roundwise wrote, the recipe is in the metadata, under "
            "'roundwise.recipe.settings'.)"
        )
    quantized = load(file)
    size = file.stat().st_size
    if as_json:
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
