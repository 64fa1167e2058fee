"""Folders of images: which files there are, and the class of each.

    flat                     one folder per class
    photos/a.jpg             photos/cat/1.jpg
    photos/b.jpg             photos/dog/1.jpg        label: the index of the folder among the sorted folders,
                                                     or of its name in a list of classes

The names decide the order, so the same folder always gives the same samples with the same numbers. torchvision's
`ImageFolder` is not used: it needs class folders, takes hidden ones for classes, and follows links in circles.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from roundwise.data.textfiles import read_lines
from roundwise.errors import FileFormatError
from roundwise.wording import number_of

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)


@final
@dataclass(frozen=True)
class ImageFolder:
    """The images below a folder, in a fixed order.

    Attributes:
        files: sorted by path within each class, and classes by their names.
        labels: one for each file, or None for a flat folder.
        classes: the names of the class folders, sorted; empty for a flat folder.
        ignored: how many other entries there are: files of other kinds, and links to folders inside class folders.
        counted: the number of classes: folders, or lines of the list of classes; None for a flat folder.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    ignored: int
    counted: int | None


def scan_folder(folder: Path, class_list: Path | None = None) -> ImageFolder:
    """Find the images directly in `folder`, or in its sub-folders, one per class and searched to any depth.

    Hidden files and folders are left out.

    Args:
        folder: an existing folder.
        class_list: a text file with one class per line that begins with the name of its folder. The label of a class
            is the number of its line, counted from 0.

    Raises:
        FileFormatError: there are no images, or images both beside and inside class folders; a class folder is empty,
            or missing in the list; the list is for a flat folder, or has empty lines; a link is broken.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    for entry in entries:
        _check_link(entry)
    flat = tuple(entry for entry in entries if entry.is_file() and _is_image(entry))
    below = {entry.name: _files_below(entry) for entry in entries if entry.is_dir()}
    images = {name: list(filter(_is_image, files)) for name, files in below.items()}
    everything = len(entries) - len(below) + sum(map(len, below.values()))
    filled, empty = [name for name in images if images[name]], [name for name in images if not images[name]]

    if flat and filled:
        raise FileFormatError(
            f"{folder} holds {number_of(len(flat), 'image')} directly and others in folders such as '{filled[0]}'. "
            "Give a folder of images, or a folder with one folder per class and nothing beside them."
        )
    if flat and class_list is not None:
        raise FileFormatError(
            f"{folder} is a flat folder of images, so it has no class folders that {class_list} could number. Sort the "
            "images into one folder per class, or give a file of labels."
        )
    if flat:
        return ImageFolder(flat, None, (), len(entries) - len(below) - len(flat), None)
    if not filled:
        raise FileFormatError(
            f"{folder} holds no images: {number_of(everything, 'file')}, none of them {', '.join(sorted(SUFFIXES))}. "
            "Give a folder of images, one folder per class, or a file of arrays."
        )
    if empty:
        raise FileFormatError(
            f"{folder / empty[0]} holds no images, but would count as a class and shift the labels of the classes "
            "after it. Remove the folder."
        )
    label_of, counted = {name: label for label, name in enumerate(images)}, len(images)
    if class_list is not None:
        label_of, counted = _labels_from(class_list, filled)
    files = tuple(file for name in filled for file in images[name])
    labels = tuple(label_of[name] for name in filled for _ in images[name])
    return ImageFolder(files, labels, tuple(filled), everything - len(files), counted)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted. Links to folders count as files, since they could lead in circles."""
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in links]
        found += [Path(parent, name) for name in (*files, *links) if not name.startswith(".")]
    for path in found:
        _check_link(path)
    return sorted(found)


def _check_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise FileFormatError(
            f"{path} is a link to '{path.readlink()}', which does not exist: an image or a class would be missing. "
            "Repair or remove the link: nothing is skipped silently."
        )


def _labels_from(class_list: Path, folders: list[str]) -> tuple[dict[str, int], int]:
    """The label of each folder, and the number of classes in the list."""
    lines = read_lines(class_list)
    if "" in lines:
        raise FileFormatError(
            f"{class_list}, line {lines.index('') + 1} is empty. The label of a class is the number of its line, so an "
            "empty line shifts the labels after it. Remove it."
        )
    labels: dict[str, int] = {}
    for number, line in enumerate(lines):
        # The first word, so that "n01440764 tench" works, or the whole line, so that "great white shark" works.
        for name in {line, line.split()[0]}:
            if name in folders and labels.get(name, number) != number:
                raise FileFormatError(
                    f"{class_list} names '{name}' in lines {labels[name] + 1} and {number + 1}, but a class has one "
                    "label, the number of its line. Remove the line that is wrong, or rename the class in it."
                )
            labels.setdefault(name, number)
    unknown = [name for name in folders if name not in labels]
    if unknown:
        near = difflib.get_close_matches(unknown[0], labels, n=3)
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise FileFormatError(
            f"{class_list} has {number_of(len(lines), 'class')}, but not '{unknown[0]}', the name of a folder of "
            f"images ({len(unknown)} of {len(folders)} folders are not listed), so their labels are not known.{hint} "
            "Write one class per line, beginning with the name of its folder."
        )
    return labels, len(lines)
