"""A folder for unfinished files goes with its work, and what a killed process leaves goes with the next work."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roundwise.workfolder import LOCK, PREFIX, is_in_use, remove_abandoned, work_folder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and locks of files are those of POSIX systems")

WORKS = """
import sys, threading, time
from pathlib import Path
from roundwise.workfolder import work_folder
def work():
    with work_folder(Path(sys.argv[1])) as folder:
        (folder / "half").write_text("half")
        print(folder, flush=True)
        time.sleep(60)
"""


@contextlib.contextmanager
def working(parent, script="work()"):
    """A process that holds a work folder, and the folder."""
    command = [sys.executable, "-c", WORKS + script, str(parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_the_folder_is_for_its_owner_only_and_goes_with_the_work(tmp_path):
    with work_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        assert is_in_use(folder)
        (folder / "half").write_text("half")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_error_everything_is_taken_back_before_the_folder_goes(tmp_path, error):
    beside = tmp_path / "beside"

    def interrupted():
        with work_folder(tmp_path, lambda folder: beside.unlink() if folder.is_dir() else None):
            beside.touch()
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_folder_and_ends_the_process_as_it_would_have(tmp_path, number):
    # Where tests run under `nohup`, SIGHUP is ignored, and processes inherit that.
    by_default = f"import signal; signal.signal({int(number)}, signal.SIG_DFL); work()"
    with working(tmp_path, by_default) as (process, folder):
        assert folder.is_dir()
        process.send_signal(number)
        assert process.wait(60) == -number
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    with working(tmp_path, "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); work()") as (process, folder):
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        assert folder.is_dir()


def test_handlers_are_there_only_while_the_folder_is(tmp_path):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with work_folder(tmp_path):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_thread_installs_no_handlers_and_what_it_leaves_is_removed_later(tmp_path):
    in_a_thread = "threading.Thread(target=work, daemon=True).start(); time.sleep(60)"
    with working(tmp_path, in_a_thread) as (process, folder):
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
    assert folder.is_dir()
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path):
    with working(tmp_path) as (killed, abandoned), working(tmp_path) as (living, in_use):
        killed.kill()
        killed.wait(60)
        assert not is_in_use(abandoned)
        assert is_in_use(in_use)
        with work_folder(tmp_path) as folder:
            assert {*tmp_path.iterdir()} == {folder, in_use}
        living.terminate()
        living.wait(60)
        assert list(tmp_path.iterdir()) == []


def test_a_process_killed_before_it_could_lock_its_folder_leaves_nothing_either(tmp_path):
    (tmp_path / f"{PREFIX}{'0' * 16}").mkdir()
    (tmp_path / f"{PREFIX}{'1' * 16}").mkdir()
    (tmp_path / f"{PREFIX}{'1' * 16}" / LOCK).touch()
    remove_abandoned(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_work_folders_is_removed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / LOCK).touch()
    (tmp_path / f"{PREFIX}{'2' * 16}").symlink_to(tmp_path / "precious")
    (tmp_path / f"{PREFIX}{'3' * 16}").write_text("a file, not a folder")
    (tmp_path / f"{PREFIX}{'4' * 15}").mkdir()
    before = {*tmp_path.iterdir()}
    remove_abandoned(tmp_path)
    assert {*tmp_path.iterdir()} == before
    assert (tmp_path / "precious" / LOCK).exists()
    remove_abandoned(tmp_path / "no such folder")
