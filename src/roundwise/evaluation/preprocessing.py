"""From an image to a network's input, pixel for pixel as torchvision and timm do it for evaluation.

    decode ─▶ resize ─▶ centre crop ─▶ x / 255 ─▶ (x − mean) / std

A network is only as accurate as its preprocessing is the one it was trained with, and calibration on wrongly scaled
inputs rounds the weights for inputs that never come. So where a model states its preprocessing, that is taken
(`of_torchvision`, `of_timm`), and everything else is written out here instead of hidden in a default.

Sizes are (height, width) throughout; Pillow's own order is the other way round and stays inside this file.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from roundwise.errors import FileFormatError, RecipeError
from roundwise.evaluation.segmentation import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}

# How many channels an image decodes to: one value in `mean` stands for grey, three for colour.
_MODES = {1: "L", 3: "RGB"}


class Resize(ABC):
    """How an image's size changes before the crop. Implementations are frozen dataclasses."""

    @abstractmethod
    def target(self, height: int, width: int) -> tuple[int, int]:
        """The new (height, width) of an image that has the given one."""


@final
@dataclass(frozen=True)
class ShorterSide(Resize):
    """Scale until the shorter side is `size` pixels long (torchvision's `Resize(size)`).

    Example:
        >>> ShorterSide(256).target(300, 401)
        (256, 342)
    """

    size: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        longer = int(self.size * max(height, width) / min(height, width))
        return (longer, self.size) if width <= height else (self.size, longer)

    def __str__(self) -> str:
        return f"shorter side to {self.size}"


@final
@dataclass(frozen=True)
class Stretch(Resize):
    """Scale to exactly this size, whatever that does to the proportions (timm's "squash")."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        return self.height, self.width

    def __str__(self) -> str:
        return f"stretched to {self.height}×{self.width}"


@final
@dataclass(frozen=True)
class Cover(Resize):
    """Scale, keeping proportions, until the image just covers this size (timm's "center" for oblong inputs)."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        ratio = min(height / self.height, width / self.width)
        return round(height / ratio), round(width / ratio)

    def __str__(self) -> str:
        return f"scaled to cover {self.height}×{self.width}"


@final
@dataclass(frozen=True)
class Fit(Resize):
    """Scale, keeping proportions, until the image just fits into this size (timm's "border")."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        ratio = max(height / self.height, width / self.width)
        return round(height / ratio), round(width / ratio)

    def __str__(self) -> str:
        return f"scaled to fit into {self.height}×{self.width}"


@final
@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image between the file and the network.

    Args:
        resize: the change of size, or None to leave it.
        crop: (height, width) of the centre crop, or None. What is smaller is padded on all sides with `fill`.
        mean, std: per channel, in units of pixel values divided by 255; one value for grey images, three for colour.
        interpolation: a name in `INTERPOLATIONS`; downscaling is antialiased, as Pillow does it.
        fill: the pixel value, 0 to 255 per channel, of padding; () is black.

    Raises:
        RecipeError: a setting is out of range, or the numbers of channels differ.

    Example:
        >>> print(Preprocessing(resize=ShorterSide(256), crop=(224, 224)))
        shorter side to 256 (bilinear), centre 224×224, mean 0.485 0.456 0.406, std 0.229 0.224 0.225
    """

    resize: Resize | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    fill: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in _MODES:
            raise RecipeError(
                f"preprocessing has {len(self.mean)} value(s) in mean and {len(self.std)} in std; an image has 1 "
                "channel (grey) or 3 (colour), and needs as many values in both."
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise RecipeError(f"preprocessing: mean={self.mean}, std={self.std}: both must be finite, std above 0.")
        if self.interpolation not in INTERPOLATIONS:
            raise RecipeError(f"interpolation '{self.interpolation}' is not one of {', '.join(INTERPOLATIONS)}.")
        if self.crop is not None and min(self.crop) < 1:
            raise RecipeError(f"crop {self.crop[0]}×{self.crop[1]}: at least 1 pixel is needed each way.")

    @property
    def channels(self) -> int:
        """How many channels the network sees."""
        return len(self.mean)

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """One image, as `read_image` or `Image.fromarray` give it, to one input, float32."""
        pixels = self.sized(image.convert(_MODES[self.channels]))
        array = np.array(pixels, dtype=np.uint8).reshape(pixels.height, pixels.width, self.channels)
        return self.normalize(torch.from_numpy(array).permute(2, 0, 1).float() / 255).contiguous()

    def sized(self, image: Image.Image) -> Image.Image:
        """Resize and crop; the arithmetic of the positions is torchvision's, to the pixel."""
        fill = self.fill if len(self.fill) == self.channels else (0,) * self.channels
        return self._placed(image, INTERPOLATIONS[self.interpolation], fill[0] if self.channels == 1 else fill)

    def mask(self, mask: Image.Image) -> Int[Tensor, "height width"]:
        """A mask, as `read_mask` gives it, to where `sized` puts its image: int64, one class a pixel.

        A pixel takes the class of the nearest one, since between two classes there is none; padding is not counted.
        """
        return torch.from_numpy(np.array(self._placed(mask, Image.Resampling.NEAREST, IGNORE), dtype=np.int64))

    def _placed(self, image: Image.Image, resampling: Image.Resampling, fill: int | tuple[int, ...]) -> Image.Image:
        if self.resize is not None:
            height, width = self.resize.target(image.height, image.width)
            if (height, width) != (image.height, image.width):
                image = image.resize((max(1, width), max(1, height)), resampling)
        if self.crop is not None:
            height, width = self.crop
            image = _padded(image, height, width, fill)
            top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
            image = image.crop((left, top, left + width, top + height))
        return image

    def normalize(self, values: Float[Tensor, "*batch channels height width"]) -> Tensor:
        """(x − mean) / std, per channel."""
        shape = (self.channels, 1, 1)
        mean, std = (torch.tensor(v, dtype=values.dtype).view(shape) for v in (self.mean, self.std))
        return (values - mean) / std

    def __str__(self) -> str:
        parts = ["size as it is"] if self.resize is None else [f"{self.resize} ({self.interpolation})"]
        if self.crop is not None:
            parts.append(f"centre {self.crop[0]}×{self.crop[1]}")
        parts.append(f"mean {' '.join(f'{v:g}' for v in self.mean)}")
        parts.append(f"std {' '.join(f'{v:g}' for v in self.std)}")
        return ", ".join(parts)


def _padded(image: Image.Image, height: int, width: int, fill: int | tuple[int, ...]) -> Image.Image:
    down, across = max(0, height - image.height), max(0, width - image.width)
    if not (down or across):
        return image
    border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
    return ImageOps.expand(image, border, fill=fill)


def read_image(path: Path) -> Image.Image:
    """Decode an image file, 8 bits per channel, in grey or colour. Rotation tags are not applied, as in torchvision.

    Raises:
        FileFormatError: the file is broken, is not an image, or has more than 8 bits per channel; it is named.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                # Pillow would clip such values to 255 without a word: a white image.
                raise FileFormatError(
                    f"{path}: {image.mode} pixels have more than 8 bits. Convert the image to 8 bits per channel, or "
                    "give the inputs as an array of floats."
                )
            palette_with_alpha = image.mode == "P" and "transparency" in image.info
            return image.convert("RGBA") if palette_with_alpha else image.copy()
    except FileFormatError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise FileFormatError(
            f"{path} cannot be decoded as an image ({type(error).__name__}: {error}). Replace the file or remove it: "
            "no image is skipped silently."
        ) from error


def read_mask(path: Path) -> Image.Image:
    """Decode a mask into grey values that are its classes: the indices of a palette, or what is stored as grey.

    Raises:
        FileFormatError: the file is broken, is no image, or stores colours, or grey of another depth; it is named.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode == "P" or (image.mode == "L" and _grey_depth(path) == 8):
                return Image.fromarray(np.array(image))
            kind = f"grey of {_grey_depth(path)} bits" if image.mode in ("1", "L") else image.mode
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        raise FileFormatError(
            f"{path} cannot be decoded as a mask ({type(error).__name__}: {error}). Replace the file, or remove its "
            "name from the split: no image is skipped silently."
        ) from error
    raise FileFormatError(
        f"{path} stores {kind} pixels, which do not say what class they are. A mask is a PNG with a palette whose "
        "indices are the classes, or of 8-bit grey whose values are. Where colours stand for classes, store the "
        "classes: with Pillow, Image.fromarray(classes.astype('uint8')).save(…)."
    )


def _grey_depth(path: Path) -> int:
    """Bits of a PNG's pixels, by its header; 8 for other formats. Pillow spreads fewer than 8 bits over 0 to 255."""
    with path.open("rb") as file:
        header = file.read(25)
    return header[24] if header.startswith(b"\x89PNG") else 8


def of_torchvision(transforms: Any) -> Preprocessing | None:
    """The preprocessing that a torchvision weights enum states, or None where it is not one image in, one image out.

    Args:
        transforms: what `torchvision.models.ResNet18_Weights.DEFAULT.transforms()` returns (no download).
    """
    settings = vars(transforms)
    if not {"resize_size", "mean", "std", "interpolation"} <= settings.keys() or len(settings["resize_size"] or ()) > 1:
        return None
    size, crop = settings["resize_size"], settings.get("crop_size")
    return Preprocessing(
        resize=ShorterSide(size[0]) if size else None,
        crop=(crop[0], crop[-1]) if crop else None,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"].value.removesuffix("-exact"),
    )


def of_timm(config: Mapping[str, Any]) -> Preprocessing | None:
    """The preprocessing that timm's `resolve_model_data_config` states; None unless inputs have 1 or 3 channels.

    Args:
        config: with `input_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std`.
    """
    channels, height, width = config["input_size"]
    if channels not in _MODES or len(config["mean"]) != channels:
        return None
    before = math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])
    resize: Resize
    match config["crop_mode"]:
        case "squash":
            resize = Stretch(*before)
        case "border":
            resize = Fit(*before)
        case _:
            resize = ShorterSide(before[0]) if before[0] == before[1] else Cover(*before)
    return Preprocessing(
        resize=resize,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        fill=tuple(round(255 * value) for value in config["mean"]) if isinstance(resize, Fit) else (),
    )
