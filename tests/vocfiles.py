"""Folders in Pascal VOC layout, small and made up: rectangles of classes on a background."""

import numpy as np
from PIL import Image


def classes_of(height=40, width=60, seed=0, classes=4):
    """A mask as an array: background 0, one rectangle of each other class, and a line of pixels that do not count."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=np.uint8)
    for label in range(1, classes):
        top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
        mask[top : top + height // 3, left : left + width // 3] = label
    mask[height // 2] = 255
    return mask


def picture_of(mask):
    """An image whose pixels are the mask's classes, in all three channels."""
    return Image.fromarray(np.repeat(mask[..., None], 3, axis=2))


def palette_image(mask):
    image = Image.fromarray(mask).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def write_voc(folder, masks, splits=None):
    """Write images and masks under names 0.0, 1.0, … (with dots, as some data sets have), and lists of them.

    Images are losslessly compressed under VOC's suffix, so that tests can say what a pixel has to be.
    """
    names = [f"{index}.0" for index in range(len(masks))]
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    for name, mask in zip(names, masks, strict=True):
        picture_of(mask).save(folder / "JPEGImages" / f"{name}.jpg", format="PNG")
        palette_image(mask).save(folder / "SegmentationClass" / f"{name}.png")
    for split, chosen in (splits or {"train": names, "val": names}).items():
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in chosen))
    return folder
