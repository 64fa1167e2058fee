"""The commands by name. Each is imported when it is used, so `roundwise --help` does not wait for PyTorch."""

from __future__ import annotations

import importlib

import click

from roundwise.wording import did_you_mean

COMMANDS = {
    "quantize": "Give a trained network 4-bit weights.",
    "compress": "Give a network fewer multiplications or parameters.",
    "finetune": "Train a network on at few bits (LSQ+).",
    "evaluate": "Measure a network, or compare two.",
    "benchmark": "Time networks side by side.",
    "inspect": "Show what is in a .rw file.",
    "methods": "List all methods and their settings.",
    "reproduce": "Run a table of a paper again, on your network.",
    "demo": "See it work: train, quantize, compare, export. About a minute.",
}
"""Each name, and what `roundwise --help` says about it; the command is `roundwise.cli.commands.<name>.command`."""

HELP = """
Quantize trained PyTorch networks to 4-bit weights, by choosing codes that keep each layer's outputs as they were.

\b
Start with:
  roundwise demo
  roundwise quantize torchvision:resnet18 --pretrained --data photos/ --out resnet18.rw
  roundwise COMMAND --help
"""


class LazyGroup(click.Group):
    """A group whose commands are modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"roundwise.cli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(f"{error.message}{did_you_mean(args[0], COMMANDS)}", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=LazyGroup,
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""
    \b
    Exit codes: 0 done; 1 it cannot be done, and the message says why; 2 wrong usage; 130 stopped by Ctrl-C
    (143 by SIGTERM).
    Results go to stdout, progress and messages to stderr.
    """,
)
@click.version_option(package_name="roundwise", message="roundwise %(version)s")
def app() -> None:
    """All commands."""
