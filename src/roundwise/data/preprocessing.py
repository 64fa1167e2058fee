"""From an image to the input of a network, pixel for pixel as torchvision and timm do it for evaluation.

    decode ─▶ resize ─▶ centre crop ─▶ x / 255 ─▶ (x − mean) / std

A network is accurate only with the preprocessing that it was trained with, and rounding calibrated on inputs in the
wrong range is rounding for inputs that never come. So where a model states its preprocessing, that one is used
(`of_torchvision`, `of_timm`), and `str(preprocessing)` says all of it.

The transforms of torchvision are not called: they place an image but not its mask (`CenterCrop` pads masks with class
0), and importing them loads all of torchvision. The tests compare with them. Sizes are (height, width) throughout;
Pillow has them the other way round.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from roundwise.errors import FileFormatError, RecipeError

IGNORE = 255
"""In a mask, the label of pixels that are not counted, as in Pascal VOC."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest")
}

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats of image files that are read, whatever a file's name says. Pillow knows others, such as EPS, for which it
starts another program."""

MOST_PIXELS = 100_000_000
"""Images with more pixels are refused: decoded, they take 3 bytes for each, however small the file is."""

# How an image is decoded, by the number of values in `mean`: one for grey, three for colour.
_MODES = {1: "L", 3: "RGB"}


@final
@dataclass(frozen=True)
class ShorterSide:
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
class Stretch:
    """Scale to exactly this size, without keeping the proportions (timm's "squash")."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        return self.height, self.width

    def __str__(self) -> str:
        return f"stretched to {self.height}×{self.width}"


@final
@dataclass(frozen=True)
class Cover:
    """Scale, keeping the proportions, until the image just covers this size (timm's "center" for oblong inputs)."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        ratio = min(height / self.height, width / self.width)
        return round(height / ratio), round(width / ratio)

    def __str__(self) -> str:
        return f"scaled to cover {self.height}×{self.width}"


@final
@dataclass(frozen=True)
class Fit:
    """Scale, keeping the proportions, until the image just fits into this size (timm's "border")."""

    height: int
    width: int

    def target(self, height: int, width: int) -> tuple[int, int]:
        ratio = max(height / self.height, width / self.width)
        return round(height / ratio), round(width / ratio)

    def __str__(self) -> str:
        return f"scaled to fit into {self.height}×{self.width}"


Resize = ShorterSide | Stretch | Cover | Fit
"""How the size of an image changes before the crop; `target` gives its new (height, width)."""


@final
@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image between the file and the network.

    Args:
        resize: the change of size, or None to keep it.
        crop: (height, width) of the centre crop, or None. A smaller image is padded on all sides with `fill`.
        mean, std: per channel, for pixel values divided by 255; one value for grey images, three for colour.
        interpolation: a name in `INTERPOLATIONS`; as Pillow does it, so antialiased where images become smaller.
        fill: the pixel value of padding, 0 to 255 per channel; () is black.

    Raises:
        RecipeError: a setting is out of range, or `mean` and `std` differ in length.

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
                "channel (grey) or 3 (colour). Give one value per channel in both."
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise RecipeError(
                f"preprocessing has mean={self.mean} and std={self.std}. Pixels are divided by std, so it must be "
                "above 0, and both must be finite."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise RecipeError(
                f"interpolation='{self.interpolation}' is not known, so no image could be resized. Choose one of "
                f"{', '.join(INTERPOLATIONS)}."
            )
        if self.crop is not None and min(self.crop) < 1:
            raise RecipeError(
                f"a crop of {self.crop[0]}×{self.crop[1]} pixels leaves nothing of an image. Give a height and a width "
                "of at least 1."
            )

    @property
    def channels(self) -> int:
        """The number of channels of the network's input."""
        return len(self.mean)

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """Make an input in float32 of an image from `read_image` or `Image.fromarray`."""
        fill = self.fill if len(self.fill) == self.channels else (0,) * self.channels
        colour = fill[0] if self.channels == 1 else fill
        pixels = self._placed(image.convert(_MODES[self.channels]), INTERPOLATIONS[self.interpolation], colour)
        array = np.array(pixels, dtype=np.uint8).reshape(pixels.height, pixels.width, self.channels)
        return self.normalize(torch.from_numpy(array).permute(2, 0, 1).float() / 255).contiguous()

    def mask(self, mask: Image.Image) -> Int[Tensor, "height width"]:
        """Resize and crop a mask from `read_mask` exactly as its image: int64, one class per pixel.

        A pixel takes the class of the nearest pixel, since nothing lies between two classes. Padding is not counted.
        """
        return torch.from_numpy(np.array(self._placed(mask, Image.Resampling.NEAREST, IGNORE), dtype=np.int64))

    def _placed(self, image: Image.Image, resampling: Image.Resampling, fill: int | tuple[int, ...]) -> Image.Image:
        """Resize and crop; positions are rounded as torchvision rounds them."""
        if self.resize is not None:
            height, width = self.resize.target(image.height, image.width)
            if height * width > MOST_PIXELS:
                raise FileFormatError(
                    f"an image of {image.width}×{image.height} pixels would become one of {width}×{height} by "
                    f"'{self.resize}', more than {MOST_PIXELS:,}. Remove it, or choose another way to resize."
                )
            if (height, width) != (image.height, image.width):
                image = image.resize((max(1, width), max(1, height)), resampling)
        if self.crop is not None:
            height, width = self.crop
            down, across = max(0, height - image.height), max(0, width - image.width)
            border = (across // 2, down // 2, (across + 1) // 2, (down + 1) // 2)
            image = ImageOps.expand(image, border, fill=fill) if any(border) else image
            top, left = round((image.height - height) / 2.0), round((image.width - width) / 2.0)
            image = image.crop((left, top, left + width, top + height))
        return image

    def normalize(self, values: Float[Tensor, "*batch channels height width"]) -> Tensor:
        """(x − mean) / std, per channel."""
        shape = (self.channels, 1, 1)
        mean, std = (torch.tensor(v, dtype=values.dtype).view(shape) for v in (self.mean, self.std))
        return (values - mean) / std

    def __str__(self) -> str:
        parts = ["size unchanged"] if self.resize is None else [f"{self.resize} ({self.interpolation})"]
        if self.crop is not None:
            parts.append(f"centre {self.crop[0]}×{self.crop[1]}")
        parts.append(f"mean {' '.join(f'{v:g}' for v in self.mean)}")
        parts.append(f"std {' '.join(f'{v:g}' for v in self.std)}")
        return ", ".join(parts)


def read_image(path: Path) -> Image.Image:
    """Decode an image file of 8 bits per channel, grey or colour. Rotation tags are not applied, as in torchvision.

    Raises:
        FileFormatError: the file is damaged, not an image of a known format, too large, or has more than 8 bits per
            channel.
    """
    with _decoded(path, "an image") as image:
        if image.mode.startswith(("I", "F")):
            # Pillow would silently clip such values to 255: a white image.
            raise FileFormatError(
                f"{path}: {image.mode} pixels have more than 8 bits. Convert the image to 8 bits per channel, or give "
                "the inputs as an array of floats."
            )
        palette_with_alpha = image.mode == "P" and "transparency" in image.info
        return image.convert("RGBA") if palette_with_alpha else image.copy()


def read_mask(path: Path) -> Image.Image:
    """Decode a mask: the class of a pixel is its index in the palette, or its value in an 8-bit grey image.

    Raises:
        FileFormatError: the file is damaged, not an image, or stores colours or grey values of another depth.
    """
    with _decoded(path, "a mask") as image:
        depth = _grey_depth(path)
        if image.mode == "P" or (image.mode == "L" and depth == 8):
            return Image.fromarray(np.array(image))
        kind = f"grey of {depth} bits" if image.mode in ("1", "L") else image.mode
        raise FileFormatError(
            f"{path} stores {kind} pixels, which do not say what class they are. A mask is a PNG with a palette whose "
            "indices are the classes, or an image of 8-bit grey whose values are the classes. Where colours stand for "
            "classes, store the classes: with Pillow, Image.fromarray(classes.astype('uint8')).save(…)."
        )


def size_of_image(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header.

    Raises:
        FileFormatError: the file is not an image of a known format.
    """
    with _opened(path, "an image") as image:
        return image.size


@contextmanager
def _decoded(path: Path, what: str) -> Iterator[Image.Image]:
    with _opened(path, what) as image:
        if image.width * image.height > MOST_PIXELS:
            raise FileFormatError(
                f"{path} has {image.width}×{image.height} pixels, more than {MOST_PIXELS:,}. Make it smaller, or "
                "remove it (and its name from a split): no image is skipped silently."
            )
        image.load()
        yield image


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
            image = Image.open(path, formats=FORMATS)
        with image:
            yield image
    except FileFormatError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise FileFormatError(
            f"{path} cannot be decoded as {what} ({type(error).__name__}: {error}). Replace the file by one of the "
            f"formats {', '.join(FORMATS)}, or remove it (and its name from a split): no image is skipped silently."
        ) from error


def _grey_depth(path: Path) -> int:
    """Bits per pixel by the header of a PNG; 8 for other formats. Pillow scales fewer than 8 bits to 0 … 255."""
    with path.open("rb") as file:
        header = file.read(25)
    return header[24] if header.startswith(b"\x89PNG") else 8


def of_torchvision(transforms: Any) -> Preprocessing | None:
    """The preprocessing in a weights enum of torchvision; None unless it turns one image into one image.

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
    square = ShorterSide(before[0]) if before[0] == before[1] else Cover(*before)
    kinds: dict[str, Resize] = {"squash": Stretch(*before), "border": Fit(*before)}
    resize = kinds.get(config["crop_mode"], square)
    return Preprocessing(
        resize=resize,
        crop=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        fill=tuple(round(255 * value) for value in config["mean"]) if isinstance(resize, Fit) else (),
    )
