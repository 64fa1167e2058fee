"""Kinds of values that options take. What is not one of the kind is wrong usage, said before anything runs."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, final

import click
import torch

from roundwise.cli.recipes import parse_bytes

EMPTY = "the name is empty. Is a variable of the shell not set?"


@final
class Existing(click.Path[Path]):
    """A file or folder that is there. Where it is not, the error says what of a like name is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail(EMPTY, param, ctx)
        try:
            os.stat(value)  # noqa: PTH116  a Path of "net.rw/" is "net.rw"
        except (FileNotFoundError, NotADirectoryError):
            self.fail(f"'{value}' does not exist{self._hint(Path(value))}", param, ctx)
        except OSError as error:
            self.fail(f"'{value}' cannot be read: {error.strerror}.", param, ctx)
        return super().convert(value, param, ctx)

    def _hint(self, path: Path) -> str:
        if path.is_symlink():
            return f": it is a link to '{path.readlink()}', which does not."
        if path.parent.is_file():
            return f": '{path.parent}' is a file, not a folder."
        if not path.parent.is_dir():
            return f", and neither does the folder '{path.parent}'."
        try:
            names = sorted(it.name for it in path.parent.iterdir() if it.is_file() or (self.dir_okay and it.is_dir()))
        except OSError:
            names = []
        if near := difflib.get_close_matches(path.name, names, n=3):
            return f". Did you mean {' or '.join(str(path.parent / name) for name in near)}?"
        return "." if path.is_absolute() else f". Names without a leading / begin in {Path.cwd()}."


@final
class Writable(click.Path[Path]):
    """A file that will be written; an empty name is none, not the folder that the command runs in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value):
            self.fail(EMPTY, param, ctx)
        return super().convert(value, param, ctx)


EXISTING_FILE = Existing(exists=True, dir_okay=False, path_type=Path)
EXISTING_PATH = Existing(exists=True, path_type=Path)
WRITABLE_FILE = Writable(path_type=Path)


def default(text: object) -> str:
    """The end of an option's help, for options that must be told apart from not being given."""
    return f"  [default: {text}]"


@final
class Size(click.ParamType[tuple[int, int]]):
    """`224`, or `480x640` for height × width: a pair of whole numbers."""

    name = "H[xW]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"0*([1-9]\d*)(?:[x×]0*([1-9]\d*))?", str(value))
        if match is None:
            self.fail(f"'{value}' is not a size; write 224, or 480x640 for height × width.", param, ctx)
        return int(match.group(1)), int(match.group(2) or match.group(1))


@final
class Shape(click.ParamType[tuple[int, ...]]):
    """`3x224x224`: whole numbers, as many as an input has dimensions."""

    name = "C[xHxW]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if re.fullmatch(r"0*[1-9]\d*(?:[x×]0*[1-9]\d*)*", str(value)) is None:
            self.fail(f"'{value}' is no size of an input; write 3x224x224, or 16 for a vector.", param, ctx)
        return tuple(map(int, re.split("[x×]", str(value))))


@final
class Seed(click.ParamType[int]):
    """`0`: what PyTorch takes for a seed, a whole number of 64 bits."""

    name = "INTEGER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if re.fullmatch(r"[+-]?\d{1,20}", str(value)) is None or not -(2**63) <= int(value) < 2**64:
            self.fail(f"'{value}' is no seed; give a whole number of at most 64 bits, such as 0.", param, ctx)
        return int(value)


@final
class ChannelValues(click.ParamType[tuple[float, ...]]):
    """`0.485,0.456,0.406`: a number for each of three colours, or one for grey."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in str(value).replace(",", " ").split())
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3):
            self.fail(f"'{value}' is not three numbers with commas between (colour), nor one (grey).", param, ctx)
        return numbers


@final
class Memory(click.ParamType[int]):
    """`2GiB`: an amount of memory, as bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@final
class Device(click.ParamType[torch.device]):
    """`cpu`, `cuda`, `cuda:1`: a device that is there and works."""

    name = "DEVICE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> torch.device:
        try:
            device = torch.device(value)
            torch.empty(1, device=device).cpu()
        except (RuntimeError, AssertionError, ImportError) as error:
            # PyTorch's ways to say no. RuntimeError: no such name (`warp`), no such device, or one that holds no values
            # (`meta`). AssertionError: built without it (`cuda`, `xpu`). ImportError: wants a package (`hpu`).
            self.fail(f"'{value}' is not a device that works here: {str(error).splitlines()[0]}", param, ctx)
        return device
