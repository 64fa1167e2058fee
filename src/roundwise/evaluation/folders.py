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
from dataclasses import dataclass
from pathlib import Path
from typing import final

from roundwise.errors import FileFormatError

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
        ignored: how many other files lie there.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    ignored: int


def scan_folder(folder: Path, class_list: Path | None = None) -> ImageFolder:
    """Find the images in `folder`: directly in it, or in one sub-folder per class (searched to any depth).

    Hidden files and folders do not count.

    Args:
        folder: an existing folder.
        class_list: a text file with one class a line, its folder's name first; a class's label is its line, from 0.

    Raises:
        FileFormatError: no images; images both beside and inside class folders; an empty class folder; a class folder
            that the list does not have; a list for a flat folder.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    flat = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    ignored = sum(entry.is_file() for entry in entries) - len(flat)
    classes = {entry.name: _files_below(entry) for entry in entries if entry.is_dir()}
    images = {name: [f for f in files if f.suffix.lower() in SUFFIXES] for name, files in classes.items()}

    if flat and any(images.values()):
        name = next(name for name, files in images.items() if files)
        raise FileFormatError(
            f"{folder} holds {len(flat)} images directly and others in folders such as '{name}'. Give a folder of "
            "images, or a folder with one folder per class and nothing beside them."
        )
    if flat:
        if class_list is not None:
            raise FileFormatError(
                f"{folder} is a flat folder of images, so the classes in {class_list} name nothing in it. Sort the "
                "images into one folder per class, or give a file of labels."
            )
        return ImageFolder(tuple(flat), None, (), ignored)
    if not any(images.values()):
        raise FileFormatError(
            f"{folder} holds no images: {ignored + sum(map(len, classes.values()))} files, none of them "
            f"{', '.join(sorted(SUFFIXES))}. Give a folder of images, one folder per class, or a file of arrays."
        )
    for name, files in images.items():
        if not files:
            raise FileFormatError(
                f"{folder / name} holds no images, but would be a class of its own and shift the labels after it. "
                "Remove the folder."
            )
    label_of = {name: label for label, name in enumerate(images)}
    if class_list is not None:
        label_of = _labels_from(class_list, tuple(images))
    labelled = [(file, label_of[name]) for name, files in images.items() for file in files]
    ignored += sum(map(len, classes.values())) - len(labelled)
    return ImageFolder(tuple(f for f, _ in labelled), tuple(label for _, label in labelled), tuple(images), ignored)


def _files_below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _labels_from(class_list: Path, folders: tuple[str, ...]) -> dict[str, int]:
    try:
        lines = class_list.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{class_list} is not a text file: {error}.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    labels: dict[str, int] = {}
    for number, line in enumerate(lines):
        # The first word, so that "n01440764 tench" works, or the whole line, so that "great white shark" does too.
        for name in {line.strip(), *line.split()[:1]}:
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
            f"{class_list} has {len(lines)} classes, but not '{unknown[0]}', the name of a folder of images "
            f"({len(unknown)} of {len(folders)} folders are not listed).{hint} The list needs one class a line, "
            "starting with the folder's name."
        )
    return {name: labels[name] for name in folders}
