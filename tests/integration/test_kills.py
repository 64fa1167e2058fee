"""A process that is killed while it writes leaves the old file or the new one, and the next write removes the rest."""

import importlib
import os
import random
import signal
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from roundwise.exporters.onnx import datafile, exporter

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # about threads in a process that forks
def test_after_a_kill_the_file_is_whole_and_after_the_next_write_nothing_is_left_over(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    kills = importlib.import_module("kills")
    for module, setting in ((exporter, "LARGEST_SINGLE_FILE"), (datafile, "LEAST_SECONDS")):
        monkeypatch.setattr(module, setting, getattr(module, setting))  # which the script changes
    models = kills.versions()
    for number in (signal.SIGKILL, signal.SIGTERM):
        for kind in kills.KINDS:
            result = kills.run(kind(models), number, 2, random.Random(0))  # noqa: S311
            assert (result["whole"], result["left over"]) == (2, []), result
