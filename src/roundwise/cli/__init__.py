"""The command line: `roundwise`, or `python -m roundwise.cli`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

NEEDED = {"click": "click", "rich": "rich", "PIL": "pillow"}


def main() -> None:
    """Run the command line with the arguments of this process, and exit with its code."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        print(
            f"roundwise: the command line needs {', '.join(missing)}, not installed here. "
            'Run: pip install "roundwise[cli]"',
            file=sys.stderr,
        )
        sys.exit(1)
    from roundwise.cli.app import app

    app(prog_name="roundwise")
