"""What a run shows while it runs, and how it ends.

Progress goes to stderr: a bar if that is a terminal, plain lines if it is a file or a pipe. Results go to stdout.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from roundwise.cli import Stopped, started
from roundwise.errors import RecipeError, RoundwiseError
from roundwise.events import (
    EpochFinished,
    Event,
    LayerFinished,
    LayerStarted,
    NetworkEvaluated,
    PassStarted,
    Planned,
    StepsFinished,
)
from roundwise.wording import human_seconds, printable_lines

P = ParamSpec("P")

FAILED, INTERRUPTED = 1, 130


def exits(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors into a message and an exit code: 1 for errors with a known cause, 130 for Ctrl-C, 143 for SIGTERM.

    Any other error is a bug, and keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        context = click.get_current_context()
        try:
            started()
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the program that reads our output has ended; click ends quietly
        except (RoundwiseError, OSError) as error:
            say(f"error: {error}")
            context.exit(FAILED)
        except KeyboardInterrupt as error:
            with contextlib.suppress(OSError):  # the terminal may be closed
                say("interrupted; unfinished files were not written, and files of the same names are as they were")
            context.exit(128 + error.number if isinstance(error, Stopped) else INTERRUPTED)

    return run


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Make a request that contradicts itself, or what there is, wrong usage of the command line."""
    try:
        yield
    except RecipeError as error:
        raise click.UsageError(str(error)) from error


def say(message: str) -> None:
    """Print a message for people, on stderr; names in it may come from a stranger's file."""
    click.echo(f"roundwise: {printable_lines(message)}", err=True)


def show_json(data: Any) -> None:
    """Print one JSON object on stdout; numbers that JSON lacks (NaN, infinity) become null."""
    finite = json.loads(json.dumps(data, default=str), parse_constant=lambda _: None)
    click.echo(json.dumps(finite, indent=2))


@contextmanager
def layer_progress() -> Iterator[Callable[[Event], None]]:
    """A function that shows a quantization's events."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_event
        return
    left = TextColumn("{task.fields[left]}", markup=False)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), left
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("capturing the model", total=None, left="")

        def show(event: Event) -> None:
            match event:
                case Planned(plan):
                    console.print(str(plan), markup=False, highlight=False)
                    bar.update(task, total=len(plan.layers), left=f"about {human_seconds(plan.seconds)}")
                case PassStarted(purpose):
                    bar.update(task, description=purpose, left="")
                case LayerStarted(name):
                    bar.update(task, description=name)
                case LayerFinished(_, index, _, seconds_left):
                    bar.update(task, completed=index + 1, left=f"{human_seconds(seconds_left)} left")
                case NetworkEvaluated(name, _, _, index, total, seconds_left):
                    left = f"{human_seconds(seconds_left)} left"
                    bar.update(task, description=name, completed=index + 1, total=total, left=left)
                case StepsFinished(epoch, epochs, step, steps, _, seconds_left):
                    done, total, left = (epoch - 1) * steps + step, epochs * steps, human_seconds(seconds_left)
                    bar.update(task, description="training", completed=done, total=total, left=f"{left} left")
                case EpochFinished():
                    console.print(str(event), markup=False, highlight=False)
                    bar.update(task, description="training", left="")

        yield show


def _print_event(event: Event) -> None:
    if not isinstance(event, LayerStarted | StepsFinished):
        click.echo(str(event), err=True)


@contextmanager
def sample_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of `total` samples are done, if stderr is a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("samples"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("samples", total=total)
        yield lambda done: bar.update(task, completed=done)
