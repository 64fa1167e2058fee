"""What a run shows while it runs, and how it ends.

Progress goes to stderr: a bar where that is a terminal, plain lines where it is a file or a pipe. Results go to stdout.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from roundwise.cli import started
from roundwise.errors import RoundwiseError
from roundwise.events import Event, LayerFinished, LayerStarted, PassStarted, Planned
from roundwise.wording import human_seconds

P = ParamSpec("P")

FAILED, INTERRUPTED = 1, 130


def exits(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what can go wrong into a message and an exit code: 1 for errors with a known cause, 130 for Ctrl-C.

    What is neither is a bug, and keeps its traceback.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        context = click.get_current_context()
        try:
            started()
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # the reader of our output has seen enough; click ends quietly
        except (RoundwiseError, OSError) as error:
            say(f"error: {error}")
            context.exit(FAILED)
        except KeyboardInterrupt:
            say("interrupted; files that were not finished are not there, or as they were before")
            context.exit(INTERRUPTED)

    return run


def say(message: str) -> None:
    """One line for people, on stderr."""
    click.echo(f"roundwise: {message}", err=True)


def show_json(data: Any) -> None:
    """One JSON object on stdout; numbers that JSON lacks (NaN, infinity) become null."""
    click.echo(json.dumps(_jsonable(data), indent=2, allow_nan=False))


def _jsonable(value: Any) -> Any:
    match value:
        case dict():
            return {str(key): _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case None | bool() | int() | float() | str():
            return value
    return str(value)


@contextmanager
def layer_progress() -> Iterator[Callable[[Event], None]]:
    """A function that shows a quantization's events."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_event
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=console,
        transient=True,
    )
    with bar:
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

        yield show


def _print_event(event: Event) -> None:
    if not isinstance(event, LayerStarted):
        click.echo(str(event), err=True)


@contextmanager
def sample_progress(total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of `total` samples are done; on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Progress(TextColumn("samples"), BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task("samples", total=total)
        yield lambda done: bar.update(task, completed=done)
