"""A folder for unfinished files. It is removed at the end, whatever ends the work.

    error, Ctrl-C       the `finally` of `work_folder` removes the folder
    SIGTERM, SIGHUP     a handler removes it, and the process then dies of the signal; there is one only in the main
                        thread, only while the folder exists, and only if the program has none of its own
    SIGKILL, a crash    nobody can act, so the next `work_folder` in the same place removes it

The last case must not remove the folder of a process that still writes. So each folder holds a file on which its
process keeps a lock (`flock`). The operating system releases the lock when the process ends, in whatever way:

1. Make the folder under a random name, with access for its owner only.
2. Make the file in it, and lock it. If another process was faster and removes the folder as abandoned, begin again.
3. Whoever looks for abandoned folders tries to lock that file, and removes the folder only if this succeeds.

On Windows, and on disks without locks, abandoned folders stay.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = ".roundwise-"
"""The names of all folders begin like this; 16 hexadecimal digits follow."""

LOCK = ".lock"
"""The file in the folder on which the process that made the folder keeps a lock."""

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def work_folder(parent: Path, undo: Callable[[Path], object] = lambda _: None) -> Iterator[Path]:
    """Make a folder that exists while the context is open. Abandoned folders beside it are removed first.

    Args:
        parent: the folder in which it is made.
        undo: called with the folder just before it is removed, to take back what was done outside of it. A signal
            handler may call it, between any two steps of the context.

    Raises:
        OSError: the folder cannot be made.
    """
    remove_abandoned(parent)
    folders: list[Path] = []  # one; more where another process took a folder for abandoned

    def clean() -> None:
        for folder in folders:
            undo(folder)
            shutil.rmtree(folder, ignore_errors=True)

    lock = None
    with _before_a_signal_ends_the_process(clean):
        try:
            while lock is None:
                folders.append(parent / f"{PREFIX}{secrets.token_hex(8)}")
                folders[-1].mkdir(mode=0o700)
                lock = _locked(folders[-1])
            yield folders[-1]
        finally:
            clean()
            if lock is not None:
                os.close(lock)


def remove_abandoned(parent: Path) -> None:
    """Remove this user's work folders whose process has ended; those that cannot be removed stay."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if re.fullmatch(f"{re.escape(PREFIX)}[0-9a-f]{{16}}", entry.name):
                _remove_if_abandoned(Path(entry.path))


def is_in_use(folder: Path) -> bool:
    """Whether a work folder exists and its process, as far as can be known, still runs."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return folder.is_dir()
    try:
        return _lock(lock) is not True
    finally:
        os.close(lock)


def _remove_if_abandoned(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:  # its process ended, or is now, between making the folder and making the file
        with contextlib.suppress(OSError):
            folder.rmdir()
        return
    try:
        if _lock(lock):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """The open and locked file of a new folder; None if another process removes the folder."""
    path = folder / LOCK
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    with contextlib.suppress(FileNotFoundError):
        if _lock(lock) is not False and os.path.samestat(path.stat(), os.fstat(lock)):
            return lock
    os.close(lock)
    return None


def _lock(file: int) -> bool | None:
    """Lock a file without waiting: False if another process holds the lock, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def _before_a_signal_ends_the_process(clean: Callable[[], None]) -> Iterator[None]:
    """Let `clean` run before SIGTERM or SIGHUP ends this process, where they would end it without more ado."""
    process = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() == process:  # not in a process that was forked meanwhile
            clean()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    unhandled = []
    if threading.current_thread() is threading.main_thread():
        unhandled = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    try:
        with contextlib.suppress(ValueError):  # raised in an interpreter that is not the process's first
            for number in unhandled:
                signal.signal(number, end)
        yield
    finally:
        for number in unhandled:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)
