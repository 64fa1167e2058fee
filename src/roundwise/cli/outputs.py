"""The files that commands write. Whether they can be written is checked before the long run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from roundwise.errors import ExportError
from roundwise.exporters import EXPORTERS, exporter_for, require_packages
from roundwise.exporters.targeting import target_for
from roundwise.files import destination
from roundwise.recipe.recipe import Recipe
from roundwise.reporting.page import PAGE_ENDINGS


def check_outputs(paths: Sequence[Path], report: Path | None) -> None:
    """Make sure that every file can be written when the time comes.

    Raises:
        click.UsageError: an unknown ending, no such folder, a folder in the file's place, or a file named twice.
        ExportError: the folder takes no new files, or packages are missing.
    """
    for path in paths:
        check_place("--out", path, tuple(EXPORTERS))
        require_packages(exporter_for(path))
    if len({path.resolve() for path in paths}) < len(paths):
        raise click.UsageError(f"--out names the same file twice: {', '.join(map(str, paths))}. Give each file once.")
    if report is not None:
        check_place("--report", report, PAGE_ENDINGS)


def check_targets(paths: Sequence[Path], recipe: Recipe) -> None:
    """Make sure that every file can hold what the recipe asks for.

    Raises:
        RecipeError: names the setting that a file's target cannot hold.
    """
    recipe = recipe.for_target()
    for path in paths:
        target = target_for(exporter_for(path), None, recipe)
        if target is not None:
            target.check(recipe)


def check_place(option: str, path: Path, suffixes: Sequence[str]) -> None:
    """Make sure that a file of one of these endings can be written.

    Raises:
        click.UsageError: another ending, no such folder, or a folder in the file's place.
        ExportError: the folder takes no new files.
    """
    if path.suffix.lower() not in suffixes:
        raise click.UsageError(
            f"{option} {path}: the ending decides the format. Give a name that ends in {' or '.join(suffixes)}."
        )
    _check_folder(option, path)


def check_journal(option: str, path: Path) -> None:
    """Make sure that lines can be added to a file, or that it can be made.

    Raises:
        click.UsageError: no such folder, something else than a file, or a link to nothing.
        ExportError: the file cannot be written, or the folder takes no new files.
    """
    if path.is_symlink() and not path.exists():
        raise click.UsageError(
            f"{option} {path} is a link to '{path.readlink()}', which does not exist. Remove the link."
        )
    if not path.exists() or path.is_dir():
        _check_folder(option, path)
    elif not path.is_file():
        raise click.UsageError(
            f"{option} {path} is not a regular file (it is a device, pipe or socket), so nothing written to it would "
            "be kept. Give another name."
        )
    else:
        try:
            path.open("r+b").close()
        except OSError as error:
            raise ExportError(f"{option} {path} cannot be written ({error.strerror}). Choose another file.") from error


def check_apart(first: str, one: Path, second: str, other: Path) -> None:
    """Make sure that two options do not name the same file, under whatever names and links.

    Raises:
        click.UsageError: they do.
    """
    same = one.samefile(other) if one.exists() and other.exists() else os.path.realpath(one) == os.path.realpath(other)
    if same:
        raise click.UsageError(
            f"{first} {one} and {second} {other} are the same file, and one would overwrite the other. Give two names."
        )


def _check_folder(option: str, path: Path) -> None:
    try:
        folder = destination(path, ExportError).parent
    except ExportError as error:
        raise click.UsageError(f"{option}: {error}") from error
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ExportError(
            f"{option} {path}: the folder '{folder}' does not accept new files ({error.strerror}). Choose another."
        ) from error
