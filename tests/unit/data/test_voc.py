"""Images with masks in Pascal VOC layout: what is read, that both stay in step, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
import torch
from facts import has, raises
from PIL import Image
from vocfiles import classes_of, palette_image, write_voc

from roundwise import FileFormatError
from roundwise.data.dataset import DataOptions, load_data
from roundwise.data.preprocessing import Cover, Fit, Preprocessing, ShorterSide, Stretch, read_mask

AS_STORED = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PLAIN = DataOptions(preprocessing=Preprocessing(**AS_STORED))


@pytest.fixture
def voc(tmp_path):
    """Three images: all in `train`, the last and the first in `val`."""
    masks = [classes_of(seed=seed) for seed in range(3)]
    return write_voc(tmp_path / "VOC2012", masks, {"train": ["0.0", "1.0", "2.0"], "val": ["2.0", "0.0"]})


def masks_of(dataset, size=8):
    batches = dataset.mask_batches(size)
    assert batches is not None
    return torch.cat(list(batches))


def inputs_of(dataset, size=8):
    return torch.cat(list(dataset.batches(size)))


def list_of(voc, split="val"):
    return voc / "ImageSets" / "Segmentation" / f"{split}.txt"


# ------------------------------------------------------------------------------------------------------ what is read


def test_a_split_gives_its_images_with_their_masks_in_its_order(voc):
    dataset = load_data(voc, PLAIN)
    expected = torch.stack([torch.from_numpy(classes_of(seed=seed)).long() for seed in (2, 0)])
    assert torch.equal(masks_of(dataset), expected)
    assert torch.equal((inputs_of(dataset)[:, 0] * 255).round().long(), expected)
    assert dataset.labels is None
    assert has(dataset.description, 2, voc, "val")


def test_masks_are_whole_numbers_with_255_kept(voc):
    masks = masks_of(load_data(voc, PLAIN))
    assert masks.dtype == torch.int64
    assert masks.unique().tolist() == [0, 1, 2, 3, 255]


def test_another_split_can_be_chosen(voc):
    dataset = load_data(voc, DataOptions(split="train"))
    assert len(dataset) == len(masks_of(dataset)) == 3


def test_for_calibration_the_training_images_are_read_and_no_masks(voc):
    for mask in (voc / "SegmentationClass").iterdir():
        mask.unlink()
    dataset = load_data(voc, DataOptions(want_labels=False))
    assert dataset.masks is None
    assert dataset.mask_batches(2) is None
    assert len(inputs_of(dataset)) == 3
    assert has(dataset.description, 3, voc, "train")


def test_a_limit_chooses_the_same_samples_of_images_and_masks(voc):
    dataset = load_data(voc, DataOptions(preprocessing=PLAIN.preprocessing, split="train", limit=2, seed=1))
    masks = masks_of(dataset, 1)
    assert len(masks) == 2
    assert torch.equal((inputs_of(dataset)[:, 0] * 255).round().long(), masks)


def test_empty_lines_of_a_list_name_nothing(voc):
    list_of(voc).write_text("\n1.0  \n\n")
    assert len(load_data(voc)) == 1


@pytest.mark.parametrize("size", [(40, 60), (61, 40), (17, 23)])
@pytest.mark.parametrize("crop", [None, (28, 28), (19, 90), (64, 33)])
@pytest.mark.parametrize(
    "resize", [None, ShorterSide(32), ShorterSide(57), Stretch(30, 44), Cover(24, 48), Fit(48, 20)]
)
def test_a_mask_goes_where_its_image_goes_to_the_pixel(tmp_path, size, crop, resize):
    # The image shows the mask, and its padding is the mask's: after the same steps it still does.
    voc = write_voc(tmp_path / "voc", [classes_of(*size)])
    preprocessing = Preprocessing(resize, crop, interpolation="nearest", fill=(255, 255, 255), **AS_STORED)
    dataset = load_data(voc, DataOptions(preprocessing=preprocessing))
    assert torch.equal((inputs_of(dataset)[:, 0] * 255).round().long(), masks_of(dataset))


@pytest.mark.parametrize("channels", [1, 3])
def test_no_class_is_made_up_where_images_are_interpolated(tmp_path, channels):
    voc = write_voc(tmp_path / "voc", [classes_of(classes=2)])
    preprocessing = Preprocessing(ShorterSide(33), (33, 33), (0.0,) * channels, (1.0,) * channels)
    dataset = load_data(voc, DataOptions(preprocessing=preprocessing))
    assert inputs_of(dataset).shape == (1, channels, 33, 33)
    assert masks_of(dataset).unique().tolist() == [0, 1, 255]


def test_padding_does_not_count(tmp_path):
    voc = write_voc(tmp_path / "voc", [np.ones((4, 4), dtype=np.uint8)])
    dataset = load_data(voc, DataOptions(preprocessing=Preprocessing(crop=(4, 8))))
    assert masks_of(dataset)[0, 0].tolist() == [255, 255, 1, 1, 1, 1, 255, 255]


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
def test_a_palette_of_any_depth_gives_its_indices(tmp_path, colours):
    classes = np.arange(64, dtype=np.uint8).reshape(8, 8) % min(colours, 64)
    palette_image(classes).save(tmp_path / "mask.png", bits={2: 1, 4: 2, 16: 4, 256: 8}[colours])
    assert np.array_equal(np.array(read_mask(tmp_path / "mask.png")), classes)


def test_a_palette_with_transparency_gives_its_indices(tmp_path):
    palette_image(classes_of()).save(tmp_path / "mask.png", transparency=0)
    assert np.array_equal(np.array(read_mask(tmp_path / "mask.png")), classes_of())


def test_a_grey_mask_gives_its_values(tmp_path):
    Image.fromarray(classes_of()).save(tmp_path / "mask.png")
    assert np.array_equal(np.array(read_mask(tmp_path / "mask.png")), classes_of())


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1", "I;16"])
def test_a_mask_of_colours_or_of_another_depth_is_refused(voc, mode):
    mask = voc / "SegmentationClass" / "0.0.png"
    image = palette_image(classes_of())
    image = Image.fromarray(classes_of().astype(np.uint16)) if mode == "I;16" else image.convert("RGB").convert(mode)
    image.save(mask)
    with raises(FileFormatError, "0.0.png", 1 if mode == "1" else mode):
        masks_of(load_data(voc))


def test_a_grey_mask_of_few_bits_is_refused_instead_of_spread_over_256_values(tmp_path):
    # Pillow reads such files but writes none.
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, 0x12]))
    path = tmp_path / "mask.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    with Image.open(path) as image:
        assert np.array(image).tolist() == [[17, 34]]
    with raises(FileFormatError, "mask.png", 4):
        read_mask(path)


def test_a_broken_mask_is_named_when_its_batch_is_due(voc):
    mask = voc / "SegmentationClass" / "0.0.png"
    mask.write_bytes(mask.read_bytes()[:60])
    batches = load_data(voc).mask_batches(1)
    assert batches is not None
    remaining = iter(batches)
    next(remaining)
    with raises(FileFormatError, "0.0.png", "OSError"):
        next(remaining)


def test_a_mask_of_another_size_than_its_image_is_refused(voc):
    palette_image(classes_of(41, 60)).save(voc / "SegmentationClass" / "0.0.png")
    with raises(FileFormatError, "0.0.png", "41×60", "0.0.jpg", "40×60"):
        masks_of(load_data(voc))


@pytest.mark.parametrize(("part", "suffix"), [("SegmentationClass", ".png"), ("JPEGImages", ".jpg")])
def test_a_missing_mask_or_image_is_refused_before_anything_runs(voc, part, suffix):
    (voc / part / f"0.0{suffix}").unlink()
    with raises(FileFormatError, voc / part / f"0.0{suffix}", "val", "'0.0'", 1, 2):
        load_data(voc)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_list_is_refused(voc, text):
    list_of(voc).write_text(text)
    with raises(FileFormatError, "val.txt", "--split"):
        load_data(voc)


def test_a_split_without_a_list_is_refused_and_those_there_are_listed(voc):
    with raises(FileFormatError, "test.txt", "train", "val", "--split"):
        load_data(voc, DataOptions(split="test"))


def test_a_folder_without_any_list_is_refused(voc):
    for split in ("train", "val"):
        list_of(voc, split).unlink()
    with raises(FileFormatError, "val.txt", "JPEGImages"):
        load_data(voc)


def test_a_folder_without_masks_cannot_be_measured(voc):
    (voc / "SegmentationClass").rename(voc / "Elsewhere")
    with raises(FileFormatError, voc, "SegmentationClass", voc / "JPEGImages"):
        load_data(voc)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("0.0\nJPEGImages/1.0.jpg SegmentationClass/1.0.png\n", (2, "JPEGImages/1.0.jpg")),
        ("0.0 1\n", (1, "'0.0 1'")),
        ("0.0\n1.0\n0.0\n", ("'0.0'", 1, 3)),
        ("0.0.jpg\n", ("0.0.jpg.jpg",)),
    ],
)
def test_a_list_of_something_else_than_names_is_refused(voc, text, facts):
    list_of(voc).write_text(text)
    with raises(FileFormatError, *facts):
        load_data(voc)


def test_a_list_that_is_no_text_is_refused(voc):
    list_of(voc).write_bytes(b"\xff\xfe\x00")
    with raises(FileFormatError, "val.txt", "UTF-8"):
        load_data(voc)


@pytest.mark.parametrize("option", ["labels", "class_list"])
def test_labels_beside_masks_are_refused(voc, tmp_path, option):
    (tmp_path / "given.txt").write_text("0\n1\n")
    with raises(FileFormatError, voc, "given.txt"):
        load_data(voc, DataOptions(**{option: tmp_path / "given.txt"}))


def test_a_split_of_something_without_splits_is_refused(voc):
    with raises(FileFormatError, "val", "SegmentationClass"):
        load_data(voc / "JPEGImages", DataOptions(split="val"))


def test_a_folder_around_one_in_voc_layout_is_not_taken_for_a_folder_of_classes(voc):
    with raises(FileFormatError, voc):
        load_data(voc.parent)


def test_images_of_different_sizes_need_a_size(tmp_path):
    voc = write_voc(tmp_path / "voc", [classes_of(), classes_of(50, 60)])
    with raises(FileFormatError, "1.0.jpg", "50×60", "0.0.jpg", "40×60", "--size"):
        inputs_of(load_data(voc))
    sized = DataOptions(preprocessing=Preprocessing(ShorterSide(32), (32, 32)))
    assert inputs_of(load_data(voc, sized)).shape[2:] == masks_of(load_data(voc, sized)).shape[1:] == (32, 32)
