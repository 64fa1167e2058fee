"""Samples for calibration and evaluation, from whatever they are stored in, a batch at a time.

    folder of images        decoded when their batch is due, preprocessed
    Pascal VOC folder       images and masks of one of its splits, likewise
    array of uint8          images too: [N, height, width, channels], [N, channels, height, width] or [N, height, width]
    any other array         inputs as the network takes them, used as they are

`load_data(path, options)` gives a `Dataset`; `dataset.batches(32)` gives its inputs, as often as they are asked for.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from roundwise.errors import FileFormatError, RecipeError
from roundwise.evaluation.arrays import Array, Keys, as_labels, check_kind, native, read_arrays, read_labels
from roundwise.evaluation.folders import by_name, scan_folder
from roundwise.evaluation.preprocessing import Preprocessing, read_image, read_mask
from roundwise.evaluation.voc import is_voc, refuse_voc_inside, scan_voc
from roundwise.wording import number_of


@final
@dataclass(frozen=True)
class DataOptions:
    """How `load_data` reads what it finds.

    Args:
        preprocessing: for images: files, and arrays of uint8.
        normalization: for other arrays, which are taken as they are where this is None. Its mean and std then apply; a
            resize or crop is refused.
        keys: which arrays hold inputs and labels in a file with several.
        class_list: a text file with one class a line, for folders with one folder per class.
        labels: a file of labels, in the order of the samples. Images of a folder are in order of name, as text: 0, 1,
            10, 2. Labels that stand beside the inputs in a file of arrays are not looked at then.
        split: of a folder in Pascal VOC layout, which images: the name of a list in ImageSets/Segmentation; None is
            "val" where labels are wanted, "train" where not.
        want_labels: whether labels or masks are read at all; False passes over whatever stands beside the inputs, and
            over what the names of folders say.
        limit: use this many samples, chosen at random, kept in order; None or more than there are uses all.
        seed: of that choice.

    Raises:
        RecipeError: `limit` is below 1; the seed is not of 64 bits; several say what the labels are, or one does
            and none are wanted.
    """

    preprocessing: Preprocessing = Preprocessing()
    normalization: Preprocessing | None = None
    keys: Keys = Keys()
    class_list: str | Path | None = None
    labels: str | Path | None = None
    split: str | None = None
    want_labels: bool = True
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise RecipeError(f"limit={self.limit}: at least one sample is needed.")
        if not -(2**63) <= self.seed < 2**64:
            raise RecipeError(f"seed={self.seed}: a seed is a number of 64 bits. Give a smaller one.")
        if self.labels is not None and (self.class_list is not None or not self.want_labels):
            other = f"the classes in {self.class_list} number folders" if self.class_list else "no labels are wanted"
            raise RecipeError(f"{other}, and {self.labels} says each sample's label; leave one of the two out.")


class Inputs(ABC):
    """Samples that can be fetched by number. Implementations are frozen dataclasses."""

    @abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abstractmethod
    def fetch(self, indices: Sequence[int]) -> Tensor:
        """These samples as one batch, `[len(indices), …]`."""


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, and their labels or masks where they are known.

    Attributes:
        inputs: all samples of the source.
        indices: numbers of those in use, ascending.
        labels: int64, one for each sample in use, or None.
        classes: names of the class folders that numbered the labels; empty where the labels came from elsewhere.
        counted: how many classes the labels were counted from: folders, or lines of the list that named them; None
            where the labels came from elsewhere. `check_classes` holds it against a network.
        preprocessing: what the inputs went through, or None where they were taken as they are.
        description: one line for people: what was found, and what was left out.
        masks: for segmentation, the class of each pixel of all samples of the source, or None.
    """

    inputs: Inputs
    indices: tuple[int, ...]
    labels: Int[Tensor, "samples"] | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    description: str
    masks: MaskFiles | None = None
    counted: int | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int) -> Batches:
        """The inputs in batches of `size` (the last may be smaller); can be gone through any number of times."""
        return Batches(self.inputs, self.indices, size)

    def mask_batches(self, size: int) -> Batches | None:
        """The masks that go with `batches(size)`: int64 `[N, height, width]`, 255 where a pixel does not count."""
        return None if self.masks is None else Batches(self.masks, self.indices, size)


@final
@dataclass(frozen=True)
class Batches:
    """Batches of inputs, in order, each fetched when it is due.

    Raises:
        RecipeError: `size` is below 1.
    """

    inputs: Inputs
    indices: tuple[int, ...]
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise RecipeError(f"batches of {self.size} samples: at least one is needed.")

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        for start in range(0, len(self.indices), self.size):
            yield self.inputs.fetch(self.indices[start : start + self.size])


def load_data(path: str | Path, options: DataOptions = DataOptions()) -> Dataset:
    """Open a folder of images or an array file. Images are decoded later, batch by batch.

    Floats of double precision become float32; other dtypes stay as they are.

    Args:
        path: a folder (flat, with one folder per class, or in Pascal VOC layout), or a `.npy`, `.npz`, `.pt` or
            `.safetensors` file.
        options: see `DataOptions`.

    Raises:
        FileFormatError: the data cannot be used, with the reason. A broken image raises when its batch is due.
        FileNotFoundError: there is nothing at the path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder.")
    class_list = None if options.class_list is None else Path(options.class_list)
    label_file = None if options.labels is None else Path(options.labels)
    classes: tuple[str, ...] = ()
    counted: int | None = None
    labels: Tensor | None = None
    masks: MaskFiles | None = None
    inputs: Inputs
    preprocessing: Preprocessing | None = options.preprocessing
    if options.split is not None and not is_voc(path):
        raise FileFormatError(
            f"{path} has no split '{options.split}': only a folder in Pascal VOC layout has splits, with the folders "
            "JPEGImages and SegmentationClass. Leave out the split."
        )
    if is_voc(path):
        for file in (class_list, label_file):
            if file is not None:
                raise FileFormatError(
                    f"{path} is in Pascal VOC layout, where masks say the class of each pixel; {file} cannot say it "
                    "too. Leave it out, or give a folder of images alone."
                )
        folder = scan_voc(path, options.split, options.want_labels)
        inputs = ImageFiles(folder.images, options.preprocessing)
        if folder.masks:
            masks = MaskFiles(folder.images, folder.masks, options.preprocessing)
        masked = " with masks" if folder.masks else ""
        description = f"{number_of(len(folder.images), 'image')}{masked} in {path}, split '{folder.split}'"
    elif path.is_dir():
        refuse_voc_inside(path)
        found = scan_folder(path, class_list)
        inputs = ImageFiles(found.files, options.preprocessing)
        description = f"{number_of(len(found.files), 'image')} in {path}"
        if found.labels is not None:
            description += f", {number_of(len(found.classes), 'class')}"
            if label_file is not None:
                raise FileFormatError(
                    f"{path} has one folder per class, which say the class of each image; {label_file} cannot say it "
                    "too. Leave it out (a list of classes says in what order a network has them), or give the images "
                    "in one folder without others."
                )
        if found.labels is not None and options.want_labels:
            labels, counted = torch.tensor(found.labels, dtype=torch.int64), found.counted
            classes = () if class_list else found.classes
        if found.ignored:
            description += f" ({number_of(found.ignored, 'other file')} ignored)"
        if label_file is not None:
            description += f", {by_name(found.files)}"
    else:
        if class_list is not None:
            raise FileFormatError(f"{path} is a file; a list of classes goes with folders of images.")
        array, stored_labels = read_arrays(path, options.keys)
        if array.ndim == 0 or len(array) == 0:
            raise FileFormatError(
                f"{path} holds no samples: the inputs are {list(array.shape)}. Save one or more of them."
            )
        kind = str(array.dtype).removeprefix("torch.")
        description = f"{kind} {list(array.shape)} in {path}"
        if kind == "uint8":
            inputs = ImageArray(_channels_last(np.asarray(array), path, options.preprocessing), options.preprocessing)
        else:
            preprocessing = options.normalization
            inputs = Values(_numbers(array, path), _checked(preprocessing, array, path))
        if stored_labels is not None and options.want_labels and label_file is None:
            labels = as_labels(stored_labels, len(inputs), path)
    if label_file is not None:
        labels = as_labels(read_labels(label_file), len(inputs), label_file)
        description += f"; labels in {label_file}"

    indices = tuple(range(len(inputs)))
    if options.limit is not None and options.limit < len(inputs):
        generator = torch.Generator().manual_seed(options.seed)
        indices = tuple(sorted(torch.randperm(len(inputs), generator=generator)[: options.limit].tolist()))
        description += f"; {options.limit:,} of them, chosen at random"
    if labels is not None:
        labels = labels[list(indices)]
    return Dataset(inputs, indices, labels, classes, preprocessing, description, masks, counted)


@final
@dataclass(frozen=True)
class ImageFiles(Inputs):
    """Image files, decoded on several threads when they are fetched."""

    files: tuple[Path, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def shape(self) -> torch.Size:
        """`[channels, height, width]` of the first image, which all others must have."""
        return self._load(0).shape

    def fetch(self, indices: Sequence[int]) -> Tensor:
        # Decoders release the interpreter's lock, so threads do run side by side.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            images = list(pool.map(self._load, indices))
        for index, image in zip(indices, images, strict=True):
            if image.shape != self.shape:
                found, first = ("×".join(map(str, shape[1:])) for shape in (image.shape, self.shape))
                raise FileFormatError(
                    f"{self.files[index]} is {found} pixels after preprocessing, {self.files[0]} is {first}; a batch "
                    "needs one size. Give --size, the height and width that the network expects (in Python, "
                    "Preprocessing(resize=…, crop=…))."
                )
        return torch.stack(images)

    def _load(self, index: int) -> Tensor:
        return self.preprocessing(read_image(self.files[index]))


@final
@dataclass(frozen=True)
class MaskFiles(Inputs):
    """Masks, each brought to where the preprocessing puts its image; so all have the inputs' size."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.masks)

    def fetch(self, indices: Sequence[int]) -> Int[Tensor, "N height width"]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return torch.stack(list(pool.map(self._load, indices)))

    def _load(self, index: int) -> Tensor:
        mask = read_mask(self.masks[index])
        with Image.open(self.images[index]) as image:  # reads its header only
            width, height = image.size
        if mask.size != (width, height):
            raise FileFormatError(
                f"{self.masks[index]} is {mask.height}×{mask.width} pixels, its image {self.images[index].name} is "
                f"{height}×{width}: the mask of another image, or one that was resized alone. A mask has a class for "
                "each pixel of its image; make it anew from the original, with nearest interpolation."
            )
        return self.preprocessing.mask(mask)


@final
@dataclass(frozen=True, eq=False)
class ImageArray(Inputs):
    """Images as uint8 `[N, height, width, channels]`."""

    pixels: np.ndarray[Any, Any] = field(repr=False)
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.pixels)

    def fetch(self, indices: Sequence[int]) -> Tensor:
        images = np.array(self.pixels[list(indices)])
        grey = images.shape[-1] == 1
        if self.preprocessing.resize is None and self.preprocessing.crop is None:
            return self.preprocessing.normalize(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).contiguous()
        return torch.stack([self.preprocessing(Image.fromarray(image[..., 0] if grey else image)) for image in images])


@final
@dataclass(frozen=True, eq=False)
class Values(Inputs):
    """Inputs as the network takes them; scaled by `normalization` only where there is one."""

    array: Array = field(repr=False)
    normalization: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.array)

    def fetch(self, indices: Sequence[int]) -> Tensor:
        chosen = self.array[list(indices)]
        batch = chosen if isinstance(chosen, Tensor) else torch.from_numpy(native(chosen, Path()))
        if batch.dtype == torch.float64:
            batch = batch.float()
        return batch if self.normalization is None else self.normalization.normalize(batch)


def _channels_last(pixels: np.ndarray[Any, Any], path: Path, preprocessing: Preprocessing) -> np.ndarray[Any, Any]:
    """Find out where the channels are, and bring them last.

    Raises:
        FileFormatError: the shape is not one of images, is ambiguous, or the channels are not as many as expected.
    """
    shape = list(pixels.shape)
    advice = "If these are not images, store them in the dtype that the network takes (float32)."
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif pixels.ndim == 4:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first and last:
            raise FileFormatError(
                f"{path}: uint8 {shape} could have its channels second or last. Store the inputs as float32, "
                "preprocessed."
            )
        if not (first or last):
            raise FileFormatError(f"{path}: uint8 {shape} has neither 1 nor 3 channels, second or last. {advice}")
        if first:
            pixels = pixels.transpose(0, 2, 3, 1)
    else:
        raise FileFormatError(
            f"{path}: uint8 {shape} is taken for images, which are [N, height, width, channels], [N, channels, height, "
            f"width] or [N, height, width]. {advice}"
        )
    if pixels.shape[-1] != preprocessing.channels:
        raise FileFormatError(
            f"{path}: the images have {pixels.shape[-1]} channel(s), but the preprocessing is for "
            f"{preprocessing.channels} ({preprocessing}). Give --mean and --std with one value per channel (in Python, "
            "Preprocessing(mean=…, std=…))."
        )
    return pixels


def _numbers(array: Array, path: Path) -> Array:
    if isinstance(array, np.ndarray):
        check_kind(array, path)
    elif array.is_complex():
        raise FileFormatError(f"{path}: complex inputs are not supported. Save them as floats or integers.")
    return array


def _checked(normalization: Preprocessing | None, array: Array, path: Path) -> Preprocessing | None:
    if normalization is None:
        return None
    found = f"{path}: {str(array.dtype).removeprefix('torch.')} {list(array.shape)}"
    if normalization.resize is not None or normalization.crop is not None:
        raise FileFormatError(
            f"{found} is not resized or cropped: only image files and arrays of uint8 are. Leave out the size."
        )
    floating = array.dtype.kind == "f" if isinstance(array, np.ndarray) else array.is_floating_point()
    if not floating or array.ndim != 4 or array.shape[1] != normalization.channels:
        raise FileFormatError(
            f"{found} cannot be normalised with {normalization.channels} value(s) of mean and std: that takes floats "
            f"[N, {normalization.channels}, height, width]. Leave out --mean and --std to use the inputs as they are."
        )
    return normalization
