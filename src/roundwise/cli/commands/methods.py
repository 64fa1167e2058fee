"""`roundwise methods`: every method that a recipe can name, and its settings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

import click

from roundwise.cli.options import as_command
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.methods.compression import COMPRESSION_METHODS, RATIO_CHOICES
from roundwise.methods.corrections import CORRECTIONS
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rewrites import REWRITES
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.methods.training import LEARNED_QUANTIZATIONS
from roundwise.recipe.finetune import Finetune
from roundwise.recipe.settings import Activations
from roundwise.wording import did_you_mean

HELP = """
List every method, or explain one: its settings with their types and defaults, and where it comes from.

\b
  roundwise methods
  roundwise methods gptq
"""

KINDS: dict[str, tuple[str, dict[str, type]]] = {
    "Rounding": ("--rounding NAME, --set SETTING=VALUE", ROUNDING_SOLVERS),
    "Ranges of weights": ("--ranges NAME, --set ranges.SETTING=VALUE", RANGE_ESTIMATORS),
    "Activations": ("--activations 8, --set activations.SETTING=VALUE", {"activations": Activations}),
    "Ranges of activations": ("--activation-ranges NAME, --set activations.ranges.SETTING=VALUE", ACTIVATION_RANGES),
    "Rewrites": ("--rewrite NAME, --set rewrites.NAME.SETTING=VALUE", REWRITES),
    "Corrections": ("--correction NAME", CORRECTIONS),
    "Compression": ("roundwise compress --method NAME, --set NAME.SETTING=VALUE", COMPRESSION_METHODS),
    "Choices of sizes": ("roundwise compress --choice NAME, --set choice.SETTING=VALUE", RATIO_CHOICES),
    "Training": ("roundwise finetune, --set finetune.SETTING=VALUE", {"finetune": Finetune}),
    "Quantizers that are trained": (
        "--training NAME, --set finetune.quantization.SETTING=VALUE",
        LEARNED_QUANTIZATIONS,
    ),
}
"""The options that choose a method of each kind and its settings, and the methods."""


@as_command(HELP, click.Argument(["name"], required=False))
def command(name: str | None) -> None:
    """Run `roundwise methods`."""
    formatter = click.HelpFormatter(width=100)
    if name is None:
        for kind, (options, table) in KINDS.items():
            with formatter.section(f"{kind} ({options})"):
                formatter.write_dl([(key, _summary(method)) for key, method in table.items()])
    else:
        found = [(kind, table[name]) for kind, (_, table) in KINDS.items() if name in table]
        if not found:
            known = [key for _, table in KINDS.values() for key in table]
            hint = did_you_mean(name, known) or " Run `roundwise methods` for a list."
            raise click.UsageError(f"there is no method '{name}'.{hint}")
        for kind, method in found:
            _explain(formatter, f"{name}: {kind}", KINDS[kind][0].replace("NAME", name), method)
    click.echo(formatter.getvalue().strip())


def _summary(method: type) -> str:
    return (method.__doc__ or "").strip().partition("\n")[0]


def _explain(formatter: click.HelpFormatter, title: str, options: str, method: type) -> None:
    """Write what the docstring and the fields of a method say."""
    parts = re.split(
        r"^(Args|Raises|References|Example):\n", inspect.cleandoc(method.__doc__ or ""), flags=re.MULTILINE
    )
    sections = dict(zip(parts[1::2], map(textwrap.dedent, parts[2::2]), strict=True))
    with formatter.section(title):
        formatter.write_text(f"{parts[0].strip()}\n\nOptions: {options}")
    settings: Any = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    if settings:
        described = _arguments(sections.get("Args", ""))
        with formatter.section("Settings"):
            formatter.write_dl([(_declared(one), described.get(one.name, "")) for one in settings], col_max=40)
    if "References" in sections:
        with formatter.section("References"):
            formatter.write_text(sections["References"])


def _arguments(text: str) -> dict[str, str]:
    """The description of each argument, from the `Args:` of a docstring; several names may share one."""
    found = {}
    for names, described in re.findall(r"^(\w[\w, ]*): (.*\n?(?:^ {4}.*\n?)*)", text, flags=re.MULTILINE):
        found.update(dict.fromkeys(names.split(", "), " ".join(described.split())))
    return found


def _declared(setting: dataclasses.Field[Any]) -> str:
    default = "" if setting.default is dataclasses.MISSING else f" = {_short(setting.default)}"
    return f"{setting.name}: {setting.type}{default}"


def _short(value: Any) -> str:
    """A value; of a method only the settings that are not its defaults."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    fields = ((one.name, getattr(value, one.name), one.default) for one in dataclasses.fields(value))
    return f"{type(value).__name__}({', '.join(f'{name}={it!r}' for name, it, usual in fields if it != usual)})"
