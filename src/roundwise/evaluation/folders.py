"""Folders of images: which files there are, and what class each belongs to.

    flat                     one folder per class
    photos/a.jpg             photos/cat/1.jpg
    photos/b.jpg             photos/dog/1.jpg        label: place of the folder among the sorted folders,
                                                     or of its name in a list of classes

The order is fixed by the names, so that the same folder always gives the same samples with the same numbers.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from roundwise.errors import FileFormatError
from roundwise.evaluation.textfiles import read_lines
from roundwise.wording import number_of

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)


@final
@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, in a fixed order.

    Attributes:
        files: sorted by path within their class, classes in label order of their folder names.
        labels: one for each file, or None for a flat folder.
        classes: names of the class folders, sorted; empty for a flat folder.
        ignored: how much else lies there: other files, and links to folders below those of the classes.
        counted: how many classes the labels were counted from, folders or lines of a list; None for a flat folder.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    ignored: int
    counted: int | None


def scan_folder(folder: Path, class_list: Path | None = None) -> ImageFolder:
    """Find the images in `folder`: directly in it, or in one sub-folder per class (searched to any depth).

    Hidden files and folders do not count.

    Args:
        folder: an existing folder.
        class_list: a text file with one class a line, its folder's name first; a class's label is its line, from 0.

    Raises:
        FileFormatError: no images; images both beside and inside class folders; an empty class folder; a class folder
            that the list does not have; a list for a flat folder, or one with empty lines; a link to nothing.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        _check_link(entry)
    flat = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    ignored = sum(not entry.is_dir() for entry in entries) - len(flat)
    classes = {entry.name: _files_below(entry) for entry in entries if entry.is_dir()}
    images = {name: [f for f in files if f.suffix.lower() in SUFFIXES] for name, files in classes.items()}

    if flat and any(images.values()):
        name = next(name for name, files in images.items() if files)
        raise FileFormatError(
            f"{folder} holds {number_of(len(flat), 'image')} directly and others in folders such as '{name}'. Give a "
            "folder of images, or a folder with one folder per class and nothing beside them."
        )
    if flat:
        if class_list is not None:
            raise FileFormatError(
                f"{folder} is a flat folder of images, so the classes in {class_list} name nothing in it. Sort the "
                "images into one folder per class, or give a file of labels."
            )
        return ImageFolder(tuple(flat), None, (), ignored, None)
    if not any(images.values()):
        others = ignored + sum(map(len, classes.values()))
        raise FileFormatError(
            f"{folder} holds no images: {number_of(others, 'file')}, none of them "
            f"{', '.join(sorted(SUFFIXES))}. Give a folder of images, one folder per class, or a file of arrays."
        )
    for name, files in images.items():
        if not files:
            raise FileFormatError(
                f"{folder / name} holds no images, but would be a class of its own and shift the labels after it. "
                "Remove the folder."
            )
    label_of, counted = {name: label for label, name in enumerate(images)}, len(images)
    if class_list is not None:
        label_of, counted = _labels_from(class_list, tuple(images))
    labelled = [(file, label_of[name]) for name, files in images.items() for file in files]
    ignored += sum(map(len, classes.values())) - len(labelled)
    found, labels = tuple(file for file, _ in labelled), tuple(label for _, label in labelled)
    return ImageFolder(found, labels, tuple(images), ignored, counted)


def _files_below(folder: Path) -> list[Path]:
    """All that lies below a folder and is none. Links to folders count as files: they could lead in circles."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        folders[:] = [name for name in folders if not name.startswith(".") and name not in links]
        found += [Path(parent, name) for name in (*files, *links) if not name.startswith(".")]
    for path in found:
        _check_link(path)
    return sorted(found)


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise FileFormatError(
            f"{path} is a link to '{path.readlink()}', which is not there: an image or a class would be missing. Mend "
            "or remove the link: nothing is skipped silently."
        )


def by_name(files: Sequence[Path]) -> str:
    """How files are ordered, for people: by name, and where numbers in the names would say otherwise, an example."""
    names = [file.name for file in files]
    for name, numbered in zip(names, sorted(names, key=_by_number), strict=True):
        if name != numbered:
            return f"in order of name as text, where '{name}' comes before '{numbered}'"
    return "in order of name"


def _by_number(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(parts)]


def _labels_from(class_list: Path, folders: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """The label of each folder, and how many classes the list has."""
    lines = read_lines(class_list)
    if "" in lines:
        raise FileFormatError(
            f"{class_list}, line {lines.index('') + 1} is empty. A class's label is its line, from 0, so empty lines "
            "shift the labels after them: remove them."
        )
    labels: dict[str, int] = {}
    for number, line in enumerate(lines):
        # The first word, so that "n01440764 tench" works, or the whole line, so that "great white shark" does too.
        for name in {line, *line.split()[:1]}:
            if name in labels and labels[name] != number and name in folders:
                raise FileFormatError(
                    f"{class_list} names '{name}' in lines {labels[name] + 1} and {number + 1}; a class has one label."
                )
            labels.setdefault(name, number)
    unknown = [name for name in folders if name not in labels]
    if unknown:
        near = difflib.get_close_matches(unknown[0], labels, n=3)
        hint = f" Names like it: {', '.join(near)}." if near else ""
        raise FileFormatError(
            f"{class_list} has {number_of(len(lines), 'class')}, but not '{unknown[0]}', the name of a folder of "
            f"images ({len(unknown)} of {len(folders)} folders are not listed).{hint} The list needs one class a line, "
            "starting with the folder's name."
        )
    return {name: labels[name] for name in folders}, len(lines)
