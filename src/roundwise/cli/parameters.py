"""How the text of an option becomes a value. A wrong text is wrong usage, and is reported before anything runs."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, final

import click
import torch

from roundwise.wording import did_you_mean

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@final
class Existing(click.Path[Path]):
    """A file or folder that exists. If it does not, the error names a file with a similar name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        try:
            os.stat(writable(value))  # noqa: PTH116  a Path of "net.rw/" is "net.rw"
        except (FileNotFoundError, NotADirectoryError):
            self.fail(f"'{value}' does not exist{self._hint(Path(value))}", param, ctx)
        except OSError as error:
            self.fail(f"'{value}' cannot be read: {error.strerror}.", param, ctx)
        return super().convert(value, param, ctx)

    def _hint(self, path: Path) -> str:
        if path.is_symlink():
            return f": it is a link to '{path.readlink()}', which does not exist."
        if path.parent.is_file():
            return f": '{path.parent}' is a file, not a folder."
        if not path.parent.is_dir():
            return f", and the folder '{path.parent}' does not exist either."
        try:
            names = sorted(it.name for it in path.parent.iterdir() if it.is_file() or (self.dir_okay and it.is_dir()))
        except OSError:
            names = []
        # A file of another kind is not what was meant, unless only the ending is wrong.
        kind = [it for it in names if path.suffix in ("", Path(it).suffix) or Path(it).stem == path.stem]
        if near := difflib.get_close_matches(path.name, kind, n=3):
            return f". Did you mean {' or '.join(str(path.parent / name) for name in near)}?"
        return "." if path.is_absolute() else f". Names without a leading / begin in {Path.cwd()}."


@final
class Named(click.Choice[Any]):
    """One of several names. If it is none, the error asks for the name that is nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}{did_you_mean(value, map(str, self.choices))}", param, ctx)


EXISTING_FILE = Existing(exists=True, dir_okay=False, path_type=Path)
EXISTING_PATH = Existing(exists=True, path_type=Path)


def writable(text: str) -> Path:
    """The path of a file that will be written."""
    if not str(text):
        raise click.BadParameter("the name is empty. Is a variable of the shell not set?")
    return Path(text)


def size(text: str) -> tuple[int, int]:
    """Read `224`, or `480x640` for height × width."""
    numbers = _whole_numbers(text)
    if len(numbers) not in (1, 2):
        raise click.BadParameter(f"'{text}' is not a size; write 224, or 480x640 for height × width.")
    return numbers[0], numbers[-1]


def shape(text: str) -> tuple[int, ...]:
    """Read `3x224x224`: as many whole numbers as an input has dimensions."""
    numbers = _whole_numbers(text)
    if not numbers:
        raise click.BadParameter(f"'{text}' is not the size of an input; write 3x224x224, or 16 for a vector.")
    return numbers


def seed(text: str) -> int:
    """Read a whole number that PyTorch accepts as a seed."""
    if re.fullmatch(r"[+-]?\d{1,20}", text) is None or not -(2**63) <= int(text) < 2**64:
        raise click.BadParameter(f"'{text}' is not a seed; give a whole number of at most 64 bits, such as 0.")
    return int(text)


def channel_values(text: str) -> tuple[float, ...]:
    """Read `0.485,0.456,0.406`: a number for each of three colours, or one for grey."""
    try:
        numbers = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise click.BadParameter(f"'{text}' is neither three numbers with commas between (colour) nor one (grey).")
    return numbers


def dimension(text: str) -> tuple[str, int, str]:
    """Read `x:2=height`: the name of an input, one of its dimensions, and a name for the size.

    Example:
        >>> dimension("x:2=height")
        ('x', 2, 'height')
    """
    match = re.fullmatch(r"(\w+):([1-9]\d?)=([A-Za-z_]\w*)", text)
    if match is None:
        raise click.BadParameter(
            f"'{text}' is not a dimension of an input; write x:2=height: the parameter of forward, the dimension (from "
            "1; 0 is the batch), and a name."
        )
    return match[1], int(match[2]), match[3]


def memory(text: str) -> int:
    """Read an amount of memory, such as `2GiB`, as bytes.

    Example:
        >>> memory("1.5GiB"), memory("200 MB"), memory("0")
        (1610612736, 200000000, 0)
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match.group(2) not in _UNITS:
        raise click.BadParameter(f"'{text}' is not an amount of memory; write 2GiB, 500MB, or a number of bytes.")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def device(text: str) -> torch.device:
    """Read `cpu`, `cuda` or `cuda:1`, and try whether the device works."""
    try:
        found = torch.device(text)
    except RuntimeError as error:  # PyTorch's own message lists two dozen kinds of devices that hardly anybody has
        meant = " Did you mean 'cuda'?" if text.lower().startswith(("gpu", "nvidia")) else ""
        raise click.BadParameter(
            f"'{text}' is not the name of a device. Write cpu, cuda, cuda:1, or another that PyTorch knows.{meant}"
        ) from error
    try:
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        # RuntimeError: it holds no values (`meta`). AssertionError: PyTorch was built without it (`cuda`, `xpu`).
        # ImportError: it needs another package (`hpu`).
        reason = str(error).splitlines()[0]
        raise click.BadParameter(f"'{text}' is not a device that works here: {reason}") from error
    return found


def _whole_numbers(text: str) -> tuple[int, ...]:
    """`3x224x224` as numbers from 1; an empty tuple if the text is anything else."""
    if re.fullmatch(r"0*[1-9]\d*(?:[x×]0*[1-9]\d*)*", text) is None:
        return ()
    return tuple(map(int, re.split("[x×]", text)))
