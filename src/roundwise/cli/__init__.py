"""The command line: `roundwise`, or `python -m roundwise.cli`."""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from types import FrameType

NEEDED = {"click": "click", "rich": "rich", "PIL": "pillow"}


def main() -> None:
    """Run the command line with the arguments of this process, and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise it is ignored on purpose
        signal.signal(signal.SIGINT, _leave)
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
    """Make Ctrl-C an exception again: from here on there may be something to clean up."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once on Ctrl-C while modules are imported: an exception there may be lost, or shown as a traceback."""
    os.write(2, b"roundwise: interrupted before anything was done\n")
    os._exit(130)
