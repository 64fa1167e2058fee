"""Describe each option once: a field of a dataclass becomes an option of click, and its value comes back in an object.

    @final
    @dataclass(frozen=True)
    class Output:
        out: tuple[Path, ...] = option(OUTPUT, "Write the network to this file.", default=(), type=Path)
        as_json: bool = flag(OUTPUT, "Print one JSON object.", "--json")

    @as_command("Give a trained network low-bit weights.", click.Argument(["model"]))
    def command(model: str, output: Output) -> None: ...

The default says what kind of option it is: False makes a flag, an empty tuple an option that may be repeated, anything
else an option with one value.

tyro derives options from dataclasses as well. It was tried and does not fit: it frames every group and prints every
type and choice in the help, which becomes three times as long, and click's own errors and shell completion are lost.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

import click
import torch

from roundwise.cli.parameters import EXISTING_FILE, Named, device
from roundwise.cli.terminal import exits

MODEL, DATA, METHOD, TRAINING = "Model", "Data", "What to do", "Training"
OUTPUT, ADVANCED = "Output", "Advanced"
SECTIONS = (MODEL, DATA, METHOD, TRAINING, OUTPUT, ADVANCED)
"""Titles in the help, in order."""

EXIT_CODES = """
Exit codes: 0 done; 1 it cannot be done, and the message on stderr says why; 2 wrong usage; 130 stopped by Ctrl-C.
Output files appear complete or not at all.
"""


def option(section: str, text: str, *names: str, default: Any = None, **settings: Any) -> Any:
    """A field of a dataclass that is an option of the command line.

    Args:
        section: the title under which the help lists it.
        text: what the help says about it.
        names: such as "--out" and "-o"; without any, the field's name.
        default: the value when the user does not give the option.
        settings: of `click.Option`, such as `type` and `metavar`.
    """
    return dataclasses.field(default=default, metadata={"section": section, "help": text, "names": names, **settings})


def flag(section: str, text: str, *names: str) -> Any:
    """An option without a value."""
    return option(section, text, *names, default=False)


def number(section: str, text: str, *names: str, least: int = 1, default: int | None = None) -> Any:
    """An option whose value is a whole number."""
    return option(section, text, *names, default=default, type=click.IntRange(least), metavar="N")


def choice(
    section: str, text: str, known: Iterable[Any], *names: str, metavar: str = "NAME", default: Any = None
) -> Any:
    """An option whose value is one of several."""
    return option(section, text, *names, default=default, type=Named(list(known)), metavar=metavar)


def file(section: str, text: str, *names: str) -> Any:
    """An option whose value is the name of a file that exists."""
    return option(section, text, *names, type=EXISTING_FILE, metavar="FILE")


def as_command(text: str, *arguments: click.Argument) -> Callable[[Callable[..., None]], click.Command]:
    """Turn a function into a command. Its parameters are the arguments, and dataclasses of options.

    Args:
        text: the help.
        arguments: what stands on the command line without a name.
    """

    def build(function: Callable[..., None]) -> click.Command:
        hints = typing.get_type_hints(function)
        groups: dict[str, Any] = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}

        @exits
        def run(**values: Any) -> None:
            made = {
                name: kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
                for name, kind in groups.items()
            }
            function(**values, **made)

        options = [it for kind in groups.values() for it in _options(kind)]
        return _Command(None, params=[*arguments, *options], callback=run, help=text, epilog=EXIT_CODES)

    return build


@final
@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of every command that runs a network."""

    as_json: bool = flag(OUTPUT, "Print the results as one JSON object.", "--json")
    device: torch.device = option(
        ADVANCED, "Where the network runs, such as cpu, cuda, cuda:1.", default="cpu", type=device, metavar="DEVICE"
    )


@final
class _Option(click.Option):
    """An option that knows its section of the help."""

    def __init__(self, names: list[str], *, section: str, **settings: Any) -> None:
        super().__init__(names, **settings)
        self.section = section

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)  # "[x>=1]", which is clear without saying
        return extra


@final
class _Command(click.Command):
    """A command whose help lists the options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[getattr(parameter, "section", ADVANCED)].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _options(kind: Any) -> Iterator[click.Option]:
    for field in dataclasses.fields(kind):
        settings = dict(field.metadata)
        names = settings.pop("names") or ("--" + field.name.replace("_", "-"),)
        yield _Option(
            [field.name, *names],
            default=field.default,
            is_flag=field.default is False,
            multiple=field.default == (),
            show_default=field.default not in (None, ()) and field.default is not False,
            **settings,
        )
