"""Write a file so that a reader sees the old file or the new one, whole, at every moment.

1. Find the regular file that the name means: links are followed; devices, pipes and sockets are refused.
2. Let the caller write into a folder beside it, which no other process uses (`workfolder.py`).
3. Give the new file the mode and, where that is permitted, the owner of the old one.
4. Have the operating system bring its content to the disk, rename it to its place, and bring the rename to the disk.
   Whoever has the old file open goes on reading the old file.

Several names for one file (hard links) do not survive: the other names keep the old content.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from roundwise.errors import RoundwiseError
from roundwise.workfolder import work_folder


@contextlib.contextmanager
def replacing(path: Path, refusal: type[RoundwiseError], also: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """Give the path of a temporary file; move it to `path` at the end, or delete it after an exception.

    Args:
        path: the file to write; an existing file is replaced.
        refusal: the class of the error that is raised if the file cannot be written.
        also: exceptions besides OSError that mean that the file cannot be written.
    """
    target = destination(path, refusal)
    with refusing(path, refusal, also), work_folder(target.parent) as folder:
        temporary = folder / target.name
        temporary.touch(exist_ok=False)
        usual = temporary.stat().st_mode
        yield temporary
        temporary.chmod(usual)  # some writers make the file readable for its owner only
        move(temporary, destination(path, refusal))


def named(path: object, refusal: type[RoundwiseError], *endings: str) -> Path:
    """The path that a caller gives for a file, checked before any work is done for it.

    Args:
        path: text or a path.
        refusal: the class of the error.
        endings: that the name of the file may have; without any, every name is allowed.

    Raises:
        RoundwiseError: it is neither text nor a path, has another ending, or nothing can be written there. (The class
            `refusal`.)
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise refusal(f"the path of the file is {path!r}; it must be text or a pathlib.Path. Give the name of a file.")
    checked = Path(path)
    if endings and checked.suffix.lower() not in endings:
        destination(checked, refusal)  # what is no file at all, such as a folder, has errors of its own
        raise refusal(
            f"'{checked}' does not end in {' or '.join(endings)}, so others could not tell what is in the file. "
            f"Write it to {checked.with_suffix(endings[0]).name}, for instance."
        )
    return checked


def destination(path: Path, refusal: type[RoundwiseError]) -> Path:
    """The file that a name means: the name itself, or the end of a chain of links. It need not exist yet.

    Raises:
        RoundwiseError: nothing can be written under that name: it is a folder, device, pipe or socket, a file that may
            not be written to, in a folder that does not exist, or no name that a file can have. (The class `refusal`.)
    """
    shown = str(path) if str(path).isprintable() else ascii(str(path))

    def refuse(reason: str) -> RoundwiseError:
        return refusal(f"cannot write {shown}: {reason}")

    try:
        status = _status(path)
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        if status is None:
            if not target.parent.is_dir():
                link = "" if target == path else f"it is a link to '{target}', and "
                raise refuse(f"{link}there is no folder '{target.parent}'. Create it first.")
            return target
        if stat.S_ISDIR(status.st_mode):
            raise refuse("it is a folder; give the name of a file.")
        if not stat.S_ISREG(status.st_mode):
            raise refuse("it is not a regular file (it is a device, pipe or socket). Give the name of a file.")
        if target != path and _status(target) is None:
            raise refuse("it is a link to a file that has no name any more. Give the name of a file.")
        if not os.access(target, os.W_OK):
            raise refuse("the file is write-protected. Permit writing to it (chmod u+w), or give another name.")
        return target
    except ValueError as error:
        if isinstance(error, RoundwiseError):
            raise
        raise refuse(f"a file cannot have this name ({error}). Give another name.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ENAMETOOLONG:
            reason = f"its name is too long, with {len(os.fsencode(path.name))} bytes (most disks take 255)"
        elif error.errno == errno.ELOOP:
            reason = "it is a link that leads back to itself"
        elif isinstance(error, NotADirectoryError):
            file = next((folder for folder in path.parents if folder.exists()), path.parent)
            reason = f"'{file}' is a file, not a folder"
        raise refuse(f"{reason}. Give another name.") from error


def move(temporary: Path, target: Path) -> None:
    """Move a complete file to its place, where it takes the mode and the owner of the file that it replaces.

    Raises:
        OSError: it cannot be moved, or its content does not reach the disk.
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    before = _status(target)
    if before is not None:
        with contextlib.suppress(OSError, AttributeError):  # only root may give files away; Windows has no owners
            os.chown(temporary, before.st_uid, before.st_gid)
        temporary.chmod(before.st_mode & 0o777)
    temporary.replace(target)
    _sync_folder(target.parent)


@contextlib.contextmanager
def lines(path: Path, refusal: type[RoundwiseError]) -> Iterator[io.FileIO]:
    """Give a file of lines to read and to add to; it is made if there is none, and other processes wait for their turn.

    What is written goes to the end in one piece and is on the disk when the context ends.

    Raises:
        RoundwiseError: the file cannot be read or written. (The class `refusal`.)
    """
    target = destination(path, refusal)
    with refusing(path, refusal), target.open("ab+", buffering=0) as file:
        with contextlib.suppress(OSError, ImportError):  # Windows, and disks without locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
        os.fsync(file.fileno())


@contextlib.contextmanager
def refusing(path: Path, refusal: type[RoundwiseError], also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors of the operating system into an error that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        reason = f"there is no folder '{path.parent}'. Create it first."
        if path.parent.is_dir():
            reason = f"no file can be created in the folder '{path.parent}'. Choose another folder."
        raise refusal(f"cannot write {path}: {reason}") from error
    except Exception as error:
        if not isinstance(error, (OSError, *also)):
            raise
        raise refusal(
            f"cannot write {path}: {error}. Check the folder's permissions and the space on its disk."
        ) from error


def _status(path: Path) -> os.stat_result | None:
    """What the operating system knows of a file, links being followed; None if there is none."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, where the operating system can."""
    with contextlib.suppress(OSError):
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)
