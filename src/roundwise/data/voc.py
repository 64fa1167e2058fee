"""Folders in the layout of Pascal VOC: images, and for some of them masks that give each pixel its class.

    VOC2012/
      JPEGImages/2007_000033.jpg
      SegmentationClass/2007_000033.png         palette index (or grey value) = class; 255 does not count
      ImageSets/Segmentation/val.txt            one name per line, without folder or suffix: 2007_000033
                             train.txt

A split is one of these lists. Its order is the order of the samples. torchvision's `VOCSegmentation` is not used: it
knows only the splits of the official archives, and it does not check that all files exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

from roundwise.data.textfiles import read_lines
from roundwise.errors import FileFormatError

IMAGES, MASKS, SPLITS = Path("JPEGImages"), Path("SegmentationClass"), Path("ImageSets", "Segmentation")


@final
@dataclass(frozen=True)
class VocFolder:
    """The files of one split: its images in the order of its list, and one mask for each image if they are wanted."""

    split: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]


def is_voc(path: Path) -> bool:
    """Whether a path is a folder in this layout: with images, and beside them masks or lists of splits."""
    return (path / IMAGES).is_dir() and ((path / MASKS).is_dir() or (path / SPLITS).is_dir())


def refuse_voc_inside(folder: Path) -> None:
    """Refuse a folder around one in this layout, such as VOCdevkit: its masks would pass for images of a class.

    Raises:
        FileFormatError: the folder contains such a folder.
    """
    inside = [entry for entry in sorted(folder.iterdir()) if is_voc(entry)]
    if inside:
        raise FileFormatError(
            f"{folder} holds {', '.join(entry.name for entry in inside)} in Pascal VOC layout. Give that folder: "
            f"{inside[0]}."
        )


def scan_voc(folder: Path, split: str | None, want_masks: bool) -> VocFolder:
    """Find the images of a split, and their masks.

    Args:
        folder: a folder for which `is_voc` is true.
        split: the name of the list; None is "val" with masks and "train" without.
        want_masks: False leaves out the masks.

    Raises:
        FileFormatError: the list is missing, empty, or not a list of names; an image or a mask is missing.
    """
    split = split or ("val" if want_masks else "train")
    names = _names(folder, split)
    images = _files(folder, split, names, IMAGES, ".jpg", "image")
    masks = _files(folder, split, names, MASKS, ".png", "mask") if want_masks else ()
    return VocFolder(split, images, masks)


def _names(folder: Path, split: str) -> list[str]:
    path = folder / SPLITS / f"{split}.txt"
    if not path.is_file():
        there = sorted(file.stem for file in (folder / SPLITS).glob("*.txt"))
        hint = f"There are {', '.join(there)}; choose one with --split (in Python, DataOptions(split=…))."
        if not there:
            hint = f"Write one with the names of the images, one per line; or give {folder / IMAGES} for images alone."
        raise FileFormatError(f"{folder} is in Pascal VOC layout, but has no list {SPLITS / path.name}. {hint}")
    line_of: dict[str, int] = {}
    for number, name in enumerate(read_lines(path), start=1):
        if len(name.split()) > 1 or "/" in name or "\\" in name:
            raise FileFormatError(
                f"{path}, line {number} is '{name}', which is not the name of one image. Write one name per line, "
                "without folder or suffix, such as 2007_000033."
            )
        if name in line_of:
            raise FileFormatError(
                f"{path} names '{name}' in lines {line_of[name]} and {number}, so it would count twice. Remove one."
            )
        if name:
            line_of[name] = number
    if not line_of:
        raise FileFormatError(
            f"{path} is empty: it names no images, so there are no samples. Write one name per line, such as "
            "2007_000033, or choose another split with --split (in Python, DataOptions(split=…))."
        )
    return list(line_of)


def _files(folder: Path, split: str, names: list[str], where: Path, suffix: str, what: str) -> tuple[Path, ...]:
    """The file of each name; all of them must exist."""
    if not (folder / where).is_dir():
        raise FileFormatError(
            f"{folder} has no folder {where}, so its images have no {what}s to be measured with. Add it, or give "
            f"{folder / IMAGES} for images alone."
        )
    files = tuple(folder / where / f"{name}{suffix}" for name in names)  # not with_suffix: names can contain dots
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileFormatError(
            f"{missing[0]}: there is no such {what}, though the list of split '{split}' names '{missing[0].stem}' "
            f"({len(missing)} of its {len(files)} {what}s are missing). Add the file, or remove the name from the "
            "list: no sample is skipped silently."
        )
    return files
