"""The command line: `roundwise`, or `python -m roundwise.cli`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib.util import find_spec
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that ask a process to end: by `kill`, `docker stop` and the like, and when the terminal is closed."""

NEEDED = {"click": "click", "rich": "rich", "PIL": "pillow"}


class Stopped(KeyboardInterrupt):
    """Another signal asked the process to end: it is cleaned up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> None:
    """Run the command line with the arguments of this process, and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it is ignored on purpose
        signal.signal(signal.SIGINT, _leave)
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:  # otherwise it is ignored on purpose, as by nohup
            signal.signal(number, _leave)
    try:
        _run()
    finally:
        started()


def _run() -> None:
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        print(
            f"roundwise: the command line needs {', '.join(missing)}, which is not installed here. "
            'Run: pip install "roundwise[cli]"',
            file=sys.stderr,
        )
        sys.exit(1)
    from roundwise.cli.app import app

    app(prog_name="roundwise")


def started() -> None:
    """Make signals exceptions: from here on there may be something to clean up."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ENDING:
        if signal.getsignal(number) is _leave:
            signal.signal(number, _stop)


def _stop(number: int, _frame: FrameType | None) -> None:
    """Raise an exception once; a closed terminal sends several signals, which would interrupt the cleaning up."""
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    raise Stopped(number)


def _leave(number: int, _frame: FrameType | None) -> None:
    """End at once while modules are imported: an exception there may be lost, or shown as a traceback."""
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(2, b"roundwise: interrupted before anything was done\n")
    os._exit(128 + number)
