"""A short run over hostile files finds no crash, no foreign error, no memory beyond the bounds and no foreign bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import roundwise


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
def test_hostile_files_do_no_harm():
    paths = [str(Path(roundwise.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--files", "300", "--exports", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "300 files in" in run.stdout
    assert " done" in run.stdout
