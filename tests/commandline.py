"""Running the command line in tests, and what is expected of a run that fails."""

import numpy as np
from click.testing import CliRunner
from facts import missing

from roundwise.cli.app import app


def run(*arguments, width=80):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], terminal_width=width)


def failed(result, code, *facts):
    """Whether a run ended with this code, told these facts on stderr, and showed neither results nor a traceback."""
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert not missing(result.stderr, *facts), result.stderr
    return True


def np_file(folder, shape, name="x.npy"):
    np.save(folder / name, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return folder / name
