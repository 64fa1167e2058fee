"""Samples for calibration and evaluation, from files of several kinds, a batch at a time.

    folder of images        decoded and preprocessed when their batch is needed
    Pascal VOC folder       images and masks of one of its splits, likewise
    array of uint8          images too: [N, height, width, channels], [N, channels, height, width] or [N, height, width]
    any other array         inputs as the network takes them, used unchanged

`load_data(path, options)` gives a `Dataset`; `dataset.batches(32)` gives its inputs, as often as they are asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from roundwise.data.arrays import Keys, read_arrays, read_labels
from roundwise.data.folders import scan_folder
from roundwise.data.labels import as_labels, described
from roundwise.data.preprocessing import Preprocessing, read_image, read_mask, size_of_image
from roundwise.data.voc import is_voc, refuse_voc_inside, scan_voc
from roundwise.errors import FileFormatError, RecipeError
from roundwise.wording import number_of


@final
@dataclass(frozen=True)
class DataOptions:
    """How `load_data` reads a file or folder.

    Args:
        preprocessing: for images: files, and arrays of uint8.
        normalization: for other arrays. Its mean and std are applied; a resize or crop is refused. None uses these
            arrays unchanged.
        keys: which arrays hold inputs and labels in a file with several.
        class_list: a text file with one class per line, for folders with one folder per class.
        labels: a file of labels, in the order of the samples. Images of a folder are sorted by name, as text: 0, 1,
            10, 2. Labels beside the inputs in a file of arrays are then ignored.
        split: which images of a folder in Pascal VOC layout: the name of a list in ImageSets/Segmentation. None is
            "val" if labels are wanted, otherwise "train".
        want_labels: False ignores labels and masks, and class folders as labels.
        limit: use this many samples, chosen at random, in their order; None, or more than there are, uses all.
        seed: of that choice.

    Raises:
        RecipeError: `limit` is below 1; the seed does not fit into 64 bits; there are two sources of labels, or one
            although no labels are wanted.
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
            raise RecipeError(
                f"limit={self.limit}: no sample would be used. Give 1 or more, or None to use all samples."
            )
        if not -(2**63) <= self.seed < 2**64:
            raise RecipeError(f"seed={self.seed}: a seed is a number of 64 bits. Give a smaller one.")
        if self.labels is not None and (self.class_list is not None or not self.want_labels):
            other = f"the classes in {self.class_list} number folders" if self.class_list else "no labels are wanted"
            raise RecipeError(
                f"{other}, and {self.labels} gives each sample's label; only one of the two can count. Leave one out."
            )


@final
@dataclass(frozen=True, eq=False)
class Samples:
    """Samples that are read one by one.

    Attributes:
        read: gives the sample of an index.
        names: what messages call the samples: their files, or numbers.
    """

    read: Callable[[int], Tensor]
    names: Sequence[Path] | range

    def __len__(self) -> int:
        return len(self.names)


@final
@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, with their labels or masks if there are any.

    Attributes:
        inputs: all samples of the source.
        indices: numbers of the samples in use, ascending.
        preprocessing: of images; None if the inputs are used unchanged.
        description: one line for people: what was found, and what was left out.
        labels: int64, one for each sample in use, or None.
        classes: names of the class folders that numbered the labels; empty if the labels are from elsewhere.
        counted: the number of classes by the folders, or by the list that numbers them; None if the labels are from
            elsewhere. `check_classes` compares it with a network.
        masks: for segmentation, the class of each pixel, for all samples of the source; or None.
    """

    inputs: Samples
    indices: tuple[int, ...]
    preprocessing: Preprocessing | None
    description: str
    labels: Int[Tensor, "samples"] | None = None
    classes: tuple[str, ...] = ()
    counted: int | None = None
    masks: Samples | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int) -> Batches:
        """The inputs in batches of `size` (the last may be smaller); can be read any number of times."""
        return Batches(self.inputs, self.indices, size)

    def mask_batches(self, size: int) -> Batches | None:
        """The masks that go with `batches(size)`: int64 `[N, height, width]`, 255 where a pixel does not count."""
        return None if self.masks is None else Batches(self.masks, self.indices, size)


@final
@dataclass(frozen=True)
class Batches:
    """Samples in batches, in order, each read when it is needed, on several threads.

    Raises:
        RecipeError: `size` is below 1.
        FileFormatError: while reading: a sample is damaged, or has another size than the first.
    """

    samples: Samples
    indices: tuple[int, ...]
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise RecipeError(f"batches of {self.size} samples: none would ever be read. Give a size of 1 or more.")

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        expected = None
        # The decoders of images release the interpreter's lock, so the threads do run in parallel.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for start in range(0, len(self.indices), self.size):
                indices = self.indices[start : start + self.size]
                batch = list(pool.map(self.samples.read, indices))
                expected = expected or batch[0].shape
                for index, sample in zip(indices, batch, strict=True):
                    if sample.shape != expected:
                        found, first = ("×".join(map(str, shape[-2:])) for shape in (sample.shape, expected))
                        raise FileFormatError(
                            f"{self.samples.names[index]} is {found} pixels after preprocessing, "
                            f"{self.samples.names[self.indices[0]]} is {first}; a batch needs one size. Give --size, "
                            "the height and width of the network's input (in Python, Preprocessing(resize=…, crop=…))."
                        )
                yield torch.stack(batch)


def load_data(path: str | Path, options: DataOptions = DataOptions()) -> Dataset:
    """Open a folder of images or an array file. Images are decoded later, batch by batch.

    Floats of double precision become float32; other dtypes stay.

    Args:
        path: a folder (flat, with one folder per class, or in Pascal VOC layout), or a `.npy`, `.npz`, `.pt` or
            `.safetensors` file.
        options: see `DataOptions`.

    Raises:
        FileFormatError: the data cannot be used. A damaged image raises when its batch is read.
        FileNotFoundError: there is no such file or folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder.")
    if is_voc(path):
        dataset = _from_voc(path, options)
    elif options.split is not None:
        raise FileFormatError(
            f"{path} has no split '{options.split}': only a folder in Pascal VOC layout has splits, with the folders "
            "JPEGImages and SegmentationClass. Leave out the split."
        )
    else:
        dataset = _from_folder(path, options) if path.is_dir() else _from_arrays(path, options)
    labels, description = dataset.labels, dataset.description
    if options.labels is not None:
        labels = as_labels(read_labels(Path(options.labels)), len(dataset), options.labels)
        description += f"; labels in {options.labels}"
    indices = dataset.indices
    if options.limit is not None and options.limit < len(dataset):
        generator = torch.Generator().manual_seed(options.seed)
        indices = tuple(sorted(torch.randperm(len(dataset), generator=generator)[: options.limit].tolist()))
        labels = None if labels is None else labels[list(indices)]
        description += f"; {options.limit:,} of them, chosen at random"
    return dataclasses.replace(dataset, indices=indices, labels=labels, description=description)


# ------------------------------------------------------------------------------------------------------- image files


def _from_voc(path: Path, options: DataOptions) -> Dataset:
    for file in (options.class_list, options.labels):
        if file is not None:
            raise FileFormatError(
                f"{path} is in Pascal VOC layout, where masks say the class of each pixel; {file} cannot say it too. "
                "Leave it out, or give a folder of images alone."
            )
    found, preprocessing = scan_voc(path, options.split, options.want_labels), options.preprocessing

    def read_mask_of(index: int) -> Int[Tensor, "height width"]:
        file, mask = found.masks[index], read_mask(found.masks[index])
        width, height = size_of_image(found.images[index])
        if mask.size != (width, height):
            sizes = f"{mask.height}×{mask.width} pixels, its image {found.images[index].name} is {height}×{width}"
            raise FileFormatError(
                f"{file} is {sizes}: it belongs to another image, or was resized alone. A mask needs a class for each "
                "pixel of its image. Make it again from the original, with nearest interpolation."
            )
        return preprocessing.mask(mask)

    masks = Samples(read_mask_of, found.masks) if found.masks else None
    images = number_of(len(found.images), "image") + (" with masks" if masks else "")
    return Dataset(
        inputs=_images(found.images, preprocessing),
        indices=tuple(range(len(found.images))),
        preprocessing=preprocessing,
        description=f"{images} in {path}, split '{found.split}'",
        masks=masks,
    )


def _from_folder(path: Path, options: DataOptions) -> Dataset:
    refuse_voc_inside(path)
    found = scan_folder(path, None if options.class_list is None else Path(options.class_list))
    if found.labels is not None and options.labels is not None:
        raise FileFormatError(
            f"{path} has one folder per class, which says the class of each image; {options.labels} cannot say it too. "
            "Leave it out (a list of classes says in what order a network has them), or give the images in one folder "
            "without others."
        )
    description = f"{number_of(len(found.files), 'image')} in {path}"
    if found.classes:
        description += f", {number_of(len(found.classes), 'class')}"
    if found.ignored:
        description += f" ({number_of(found.ignored, 'other file')} ignored)"
    if options.labels is not None:
        description += ", in order of name as text ('10' comes before '2')"
    labelled = found.labels is not None and options.want_labels
    return Dataset(
        inputs=_images(found.files, options.preprocessing),
        indices=tuple(range(len(found.files))),
        labels=torch.tensor(found.labels) if labelled else None,
        classes=found.classes if labelled and options.class_list is None else (),
        counted=found.counted if labelled else None,
        preprocessing=options.preprocessing,
        description=description,
    )


def _images(files: tuple[Path, ...], preprocessing: Preprocessing) -> Samples:
    return Samples(lambda index: preprocessing(read_image(files[index])), files)


# ------------------------------------------------------------------------------------------------------- array files


def _from_arrays(path: Path, options: DataOptions) -> Dataset:
    if options.class_list is not None:
        raise FileFormatError(
            f"{path} is a file, and the list of classes {options.class_list} says what number each folder of images "
            "has. Leave it out; give labels in the file, or in a file of their own (--labels; in Python, "
            "DataOptions(labels=…))."
        )
    array, stored = read_arrays(path, options.keys)
    if array.ndim == 0 or len(array) == 0:
        raise FileFormatError(f"{path} holds no samples: the inputs are {list(array.shape)}. Save at least one sample.")
    stored_bytes = array.untyped_storage().nbytes()
    if len(array) > stored_bytes:
        raise FileFormatError(
            f"{path} holds {len(array):,} samples in {stored_bytes:,} bytes: the same numbers count again and again "
            "(an expanded tensor). Save a copy (tensor.contiguous()) of as many samples as you need."
        )
    images, numbers = array.dtype == torch.uint8, range(len(array))
    if images:
        preprocessing: Preprocessing | None = options.preprocessing
        inputs = Samples(_image_reader(array, path, options.preprocessing), numbers)
    else:
        preprocessing = options.normalization
        inputs = Samples(_value_reader(array, path, options.normalization), numbers)
    use_stored = stored is not None and options.want_labels and options.labels is None
    return Dataset(
        inputs=inputs,
        indices=tuple(numbers),
        labels=as_labels(stored, len(array), path) if use_stored else None,
        preprocessing=preprocessing,
        description=f"{described(array)} in {path}",
    )


def _image_reader(pixels: Tensor, path: Path, preprocessing: Preprocessing) -> Callable[[int], Tensor]:
    """A function that reads one image of an array, wherever the array has its channels.

    Raises:
        FileFormatError: the shape is not one of images or is ambiguous, or the number of channels is unexpected.
    """
    found, shape = f"{path}: uint8 {list(pixels.shape)}", pixels.shape
    advice = "If these are not images, store them in the dtype that the network takes (float32)."
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif pixels.ndim != 4:
        raise FileFormatError(
            f"{found} is taken for images, which are [N, height, width, channels], [N, channels, height, width] or "
            f"[N, height, width]. {advice}"
        )
    elif shape[1] in (1, 3) and shape[3] in (1, 3):
        raise FileFormatError(
            f"{found} could have its channels second or last. Store the inputs as float32, preprocessed."
        )
    elif shape[1] in (1, 3):
        pixels = pixels.permute(0, 2, 3, 1)
    elif shape[3] not in (1, 3):
        raise FileFormatError(f"{found} has neither 1 nor 3 channels, second or last. {advice}")
    channels = pixels.shape[-1]
    if channels != preprocessing.channels:
        raise FileFormatError(
            f"{path}: the images have {channels} channel(s), but the preprocessing is for {preprocessing.channels} "
            f"({preprocessing}). Give --mean and --std with one value per channel (in Python, Preprocessing(mean=…, "
            "std=…))."
        )
    images = pixels[..., 0] if channels == 1 else pixels
    return lambda index: preprocessing(Image.fromarray(images[index].numpy()))


def _value_reader(array: Tensor, path: Path, normalization: Preprocessing | None) -> Callable[[int], Tensor]:
    """A function that reads one input of an array, and normalizes it if that is asked for.

    Raises:
        FileFormatError: the numbers are complex, or the normalization does not fit them.
    """
    found = f"{path}: {described(array)}"
    if array.is_complex():
        raise FileFormatError(f"{found}: complex inputs are not supported. Save them as floats or integers.")
    if normalization is None:
        return lambda index: _single(array[index])
    if normalization.resize is not None or normalization.crop is not None:
        raise FileFormatError(
            f"{found} is not resized or cropped: only image files and arrays of uint8 are. Leave out the size."
        )
    if not array.is_floating_point() or array.ndim != 4 or array.shape[1] != normalization.channels:
        raise FileFormatError(
            f"{found} cannot be normalised with {normalization.channels} value(s) of mean and std: that takes floats "
            f"[N, {normalization.channels}, height, width]. Leave out --mean and --std to use the inputs unchanged."
        )
    return lambda index: normalization.normalize(_single(array[index]))


def _single(values: Tensor) -> Tensor:
    return values.float() if values.dtype == torch.float64 else values
