"""An ONNX file and the file with its data, which change together or not at all.

A reader opens the ONNX file, and finds the name of the data file in it. Two files cannot be replaced in one step. So no
data file is ever replaced: each export gives its data file a name of its own,

    net.onnx   →   net.onnx.0123456789abcdef.data

1. Put the data file in its place. Nothing refers to it yet.
2. Rename the ONNX file to its place. From then on, readers find the new pair.
3. Wait, so that who has just read the old ONNX file can open its data (`seconds_to_read`), and remove the old data.

If the process is killed between these steps, the folder holds a data file to which nothing refers. The next export to
the same name removes it. It must not remove the data file of an export that runs at the same time, before its step 2.
Such an export has a work folder with the same 16 digits in its name. So look for the work folder first, and read the
ONNX file after that: once the work folder is gone, no ONNX file will begin to refer to the data file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from roundwise.errors import ExportError
from roundwise.files import destination, move, refusing
from roundwise.workfolder import PREFIX, is_in_use, work_folder

LEAST_SECONDS = 1.0
"""A reader that has read an ONNX file has at least this long to open its data file."""

READ_PER_SECOND = 200_000_000
"""Bytes that a slow disk reads in a second; larger data files stay for longer."""


@contextlib.contextmanager
def replacing_pair(path: Path) -> Iterator[tuple[Path, Path]]:
    """Give temporary paths for an ONNX file and its data file; the second need not be written.

    At the end they are moved to their places, and data files that nothing refers to any more are removed.

    Raises:
        ExportError: the files cannot be written.
    """
    target = destination(path, ExportError)

    def data_in(folder: Path) -> Path:
        return folder / f"{target.name}.{folder.name.removeprefix(PREFIX)}.data"

    def take_back(folder: Path) -> None:
        if (folder / target.name).exists():  # it did not come to its place, so nothing refers to the data
            target.with_name(data_in(folder).name).unlink(missing_ok=True)

    with refusing(path, ExportError), work_folder(target.parent, take_back) as folder:
        file, data = folder / target.name, data_in(folder)
        file.touch(exist_ok=False)
        usual = file.stat().st_mode
        yield file, data
        if data.exists():
            if not target.parent.samefile(path.parent):
                raise ExportError(
                    f"'{path}' is a link to '{target}', and the network's data needs a file of its own. Programs look "
                    f"for it beside the link and would not find it there. Give the name '{target}'."
                )
            data.chmod(target.stat().st_mode & 0o777 if target.exists() else usual)
            move(data, target.with_name(data.name))
        file.chmod(usual)  # some writers make the file readable for its owner only
        move(file, destination(path, ExportError))
    with contextlib.suppress(OSError):  # what cannot be removed now is left to the next export
        _remove_old_data(target)


def seconds_to_read(size: int) -> float:
    """How long data of this many bytes stays after nothing refers to it any more."""
    return max(LEAST_SECONDS, size / READ_PER_SECOND)


def _remove_old_data(target: Path) -> None:
    """Remove this ONNX file's data files to which it does not refer."""
    pattern = re.compile(f"{re.escape(target.name)}\\.([0-9a-f]{{16}})\\.data")
    found = [match for entry in os.scandir(target.parent) if (match := pattern.fullmatch(entry.name))]
    ended = [match[0] for match in found if not is_in_use(target.with_name(PREFIX + match[1]))]
    if not ended:
        return
    with target.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        old = [target.with_name(name) for name in ended if content.find(name.encode()) < 0]
    if not old:
        return
    try:
        time.sleep(seconds_to_read(max(data.stat().st_size for data in old)))
    finally:
        for data in old:
            data.unlink(missing_ok=True)
