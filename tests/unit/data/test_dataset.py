"""Samples from files: what is read, how images are prepared, and what is refused."""

import zipfile

import numpy as np
import pytest
import torch
from facts import has, raises
from PIL import Image
from safetensors.torch import save_file

from roundwise import CalibrationError, FileFormatError, RecipeError
from roundwise.data.arrays import Keys, read_labels
from roundwise.data.dataset import DataOptions, load_data
from roundwise.data.preprocessing import (
    Cover,
    Fit,
    Preprocessing,
    ShorterSide,
    Stretch,
    of_timm,
    of_torchvision,
    read_image,
)
from roundwise.evaluation import check_classes

PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
GREY = Preprocessing(mean=(0.0,), std=(1.0,))


def photo(height=40, width=60, seed=0, mode="RGB"):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def write_photos(folder, count, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        photo(seed=index, **settings).save(folder / f"{index}.png")
    return folder


def only_batch(dataset):
    (batch,) = dataset.batches(len(dataset))
    return batch


# ---------------------------------------------------------------------------------------------------- preprocessing


def test_an_image_is_scaled_to_0_to_1_and_then_normalised():
    image = Image.new("RGB", (2, 2), (255, 0, 51))
    result = Preprocessing(mean=(0.5, 0.0, 0.2), std=(0.5, 1.0, 2.0))(image)
    assert result.shape == (3, 2, 2)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_one_value_of_mean_means_grey():
    assert GREY(photo()).shape == (1, 40, 60)


@pytest.fixture(scope="module")
def torchvision_transforms():
    from roundwise.loading.vision import import_collection

    try:
        import_collection("torchvision")
    except Exception as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    import torchvision.transforms

    return torchvision.transforms


SIZES = [(40, 60), (61, 40), (33, 33), (20, 200), (17, 23), (300, 401)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("resize", "crop"), [(32, 28), (24, 24), (48, 31), (16, 40)])
def test_resize_and_crop_are_those_of_torchvision_to_the_pixel(torchvision_transforms, size, resize, crop):
    image = photo(*size)
    from torchvision.transforms._presets import ImageClassification

    theirs = ImageClassification(crop_size=crop, resize_size=resize)
    ours = of_torchvision(theirs)
    assert ours is not None
    assert torch.equal(ours(image), theirs(image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(32, 32), (32, 48)])
def test_timm_configurations_are_followed_to_the_pixel(torchvision_transforms, size, crop_mode, shape):
    create = pytest.importorskip("timm.data").create_transform
    config = {
        "input_size": (3, *shape),
        "crop_pct": 0.9,
        "crop_mode": crop_mode,
        "interpolation": "bicubic",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
    }
    ours = of_timm(config)
    assert ours is not None
    torch.testing.assert_close(ours(photo(*size)), create(**config)(photo(*size)), rtol=0, atol=1e-6)


def test_a_configuration_for_something_else_than_images_is_none():
    config = {"input_size": (12, 8, 8), "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
    assert of_timm({**config, "mean": (0.0,) * 12, "std": (1.0,) * 12}) is None

    class OpticalFlow:
        pass

    assert of_torchvision(OpticalFlow()) is None


def test_ways_to_resize_differ_in_what_they_keep():
    assert ShorterSide(50).target(100, 200) == (50, 100)
    assert Stretch(50, 50).target(100, 200) == (50, 50)
    assert Cover(50, 50).target(100, 200) == (50, 100)
    assert Fit(50, 50).target(100, 200) == (25, 50)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, ("mean", "std", 2)),
        ({"mean": (0.5,)}, ("mean", 1, "std", 3)),
        ({"std": (0.5, 0.5, 0.0)}, ("std", "0.5, 0.5, 0.0")),
        ({"mean": (0.5, float("nan"), 0.5)}, ("mean", "0.5, nan, 0.5")),
        ({"interpolation": "cubic"}, ("interpolation", "cubic", "bicubic")),
        ({"crop": (0, 5)}, ("crop", "0×5")),
    ],
)
def test_impossible_preprocessing_is_refused(settings, facts):
    with raises(RecipeError, *facts):
        Preprocessing(**settings)


# ------------------------------------------------------------------------------------------------------ image files


def test_a_flat_folder_gives_its_images_sorted_and_without_labels(tmp_path):
    write_photos(tmp_path, 3)
    dataset = load_data(tmp_path, DataOptions(preprocessing=PLAIN))
    assert len(dataset) == 3
    assert dataset.labels is None
    expected = torch.stack([PLAIN(photo(seed=index)) for index in range(3)])
    assert torch.equal(only_batch(dataset), expected)


def test_class_folders_give_labels_by_sorted_name(tmp_path):
    for name, count in (("dog", 1), ("cat", 2)):
        write_photos(tmp_path / name, count)
    write_photos(tmp_path / "cat" / "deeper", 1)
    dataset = load_data(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("lines", ["bird\ndog\ncat\n", "bird a bird\ndog a dog\ncat a cat", "bird\ndog\ncat\n\n\n"])
def test_a_class_list_decides_the_labels(tmp_path, lines):
    write_photos(tmp_path / "data" / "dog", 1)
    write_photos(tmp_path / "data" / "cat", 1)
    (tmp_path / "classes.txt").write_text(lines)
    dataset = load_data(tmp_path / "data", DataOptions(class_list=tmp_path / "classes.txt"))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 1]
    assert dataset.classes == ()


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfdog\ncat\n", b"dog\r\ncat\r\n", b"dog\x0cbig\ncat"])
def test_a_class_list_may_come_from_any_editor(tmp_path, content):
    write_photos(tmp_path / "data" / "dog", 1)
    write_photos(tmp_path / "data" / "cat", 1)
    (tmp_path / "classes.txt").write_bytes(content)
    dataset = load_data(tmp_path / "data", DataOptions(class_list=str(tmp_path / "classes.txt")))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 0]


def test_an_empty_line_in_a_class_list_is_refused_by_its_number(tmp_path):
    write_photos(tmp_path / "data" / "dog", 1)
    (tmp_path / "classes.txt").write_text("cat\n \ndog\n")
    with raises(FileFormatError, "classes.txt", 2):
        load_data(tmp_path / "data", DataOptions(class_list=tmp_path / "classes.txt"))


RESULTS = {
    "a tensor": lambda scores: scores,
    "a dict": lambda scores: {"logits": scores},
    "a tuple": lambda scores: (scores,),
    "scores and classes": lambda scores: (scores, scores.argmax(1)),
    "the one named out": lambda scores: {"aux": scores[:, :1], "out": scores},
}


@pytest.mark.parametrize("kind", RESULTS)
def test_folders_must_be_as_many_as_the_classes_of_a_network_however_it_returns_them(tmp_path, kind):
    for name in ("bee", "cat"):
        write_photos(tmp_path / name, 1)
    dataset = load_data(tmp_path)
    check_classes(RESULTS[kind](torch.zeros(1, 2)), dataset)
    for classes in (1, 3, 1000):
        with raises(CalibrationError, 2, classes, "--classes"):
            check_classes(RESULTS[kind](torch.zeros(1, classes)), dataset)


def test_a_list_of_classes_has_a_line_for_each_class_of_the_network(tmp_path):
    write_photos(tmp_path / "data" / "cat", 1)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    dataset = load_data(tmp_path / "data", DataOptions(class_list=tmp_path / "classes.txt"))
    check_classes(torch.zeros(1, 3), dataset)
    for classes in (2, 4):
        with raises(CalibrationError, 3, classes):
            check_classes(torch.zeros(1, classes), dataset)


def test_labels_that_no_folder_counted_say_nothing_of_the_number_of_classes(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 3), dtype=np.float32), y=np.zeros(2, dtype=np.int64))
    check_classes(torch.zeros(1, 3), load_data(tmp_path / "data.npz"))


def test_labels_from_a_file_are_refused_where_folders_say_the_class(tmp_path):
    write_photos(tmp_path / "data" / "cat", 2)
    for name in ("labels.txt", "classes.txt"):
        (tmp_path / name).write_text("0\n0\n")
    with raises(FileFormatError, tmp_path / "data", "labels.txt"):
        load_data(tmp_path / "data", DataOptions(labels=tmp_path / "labels.txt"))
    with raises(RecipeError, "classes.txt", "labels.txt"):
        DataOptions(labels=tmp_path / "labels.txt", class_list=tmp_path / "classes.txt")
    with raises(RecipeError, "labels.txt"):
        DataOptions(labels=tmp_path / "labels.txt", want_labels=False)


def test_folders_are_no_labels_where_none_are_wanted(tmp_path):
    write_photos(tmp_path / "cat", 2)
    dataset = load_data(tmp_path, DataOptions(want_labels=False))
    assert (dataset.labels, dataset.classes, dataset.counted) == (None, (), None)


def test_labels_for_a_flat_folder_go_by_name_as_text_and_the_description_says_so(tmp_path):
    write_photos(tmp_path / "data", 11)
    (tmp_path / "labels.txt").write_text("\n".join(map(str, range(11))))
    options = DataOptions(labels=str(tmp_path / "labels.txt"))
    assert "order" not in load_data(tmp_path / "data").description
    dataset = load_data(tmp_path / "data", options)
    assert has(dataset.description, "text", "labels.txt")
    assert [file.name for file in dataset.inputs.names[:3]] == ["0.png", "1.png", "10.png"]


@pytest.mark.parametrize("place", ["b.png", "b", "cat/b.png", "cat/b"])
def test_a_link_to_nothing_is_refused(tmp_path, place):
    write_photos(tmp_path / "cat" if "/" in place else tmp_path, 1)
    (tmp_path / place).symlink_to("nowhere.png")
    with raises(FileFormatError, place, "nowhere.png"):
        load_data(tmp_path)


def test_a_link_to_a_folder_is_a_class_but_inside_a_class_it_is_only_counted(tmp_path):
    write_photos(tmp_path / "elsewhere", 2)
    write_photos(tmp_path / "data" / "dog", 1)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    dataset = load_data(tmp_path / "data")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 1]
    assert has(dataset.description, 3, 1)


def test_a_class_list_without_a_folders_name_is_refused(tmp_path):
    write_photos(tmp_path / "data" / "dog", 1)
    (tmp_path / "classes.txt").write_text("cat\ndoge\n")
    with raises(FileFormatError, "classes.txt", "dog", "doge"):
        load_data(tmp_path / "data", DataOptions(class_list=tmp_path / "classes.txt"))


def test_a_class_that_is_listed_twice_is_refused(tmp_path):
    write_photos(tmp_path / "data" / "dog", 1)
    (tmp_path / "classes.txt").write_text("dog\ncat\ndog\n")
    with raises(FileFormatError, "classes.txt", "dog", 1, 3):
        load_data(tmp_path / "data", DataOptions(class_list=tmp_path / "classes.txt"))


def test_a_class_list_for_a_flat_folder_is_refused(tmp_path):
    write_photos(tmp_path / "data", 1)
    (tmp_path / "classes.txt").write_text("dog\n")
    with raises(FileFormatError, tmp_path / "data", "classes.txt"):
        load_data(tmp_path / "data", DataOptions(class_list=tmp_path / "classes.txt"))


def test_a_class_list_for_an_array_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3), dtype=np.float32))
    (tmp_path / "classes.txt").write_text("dog\n")
    with raises(FileFormatError, "x.npy"):
        load_data(tmp_path / "x.npy", DataOptions(class_list=tmp_path / "classes.txt"))


def test_other_files_are_counted_and_hidden_ones_are_not_seen(tmp_path):
    write_photos(tmp_path, 2)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".thumbnails").mkdir()
    assert has(load_data(tmp_path).description, 2, 1)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with raises(FileFormatError, tmp_path, 1, ".png"):
        load_data(tmp_path)


def test_an_empty_class_folder_is_refused(tmp_path):
    write_photos(tmp_path / "dog", 1)
    (tmp_path / "cat").mkdir()
    with raises(FileFormatError, "cat"):
        load_data(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path):
    write_photos(tmp_path, 1)
    write_photos(tmp_path / "dog", 1)
    with raises(FileFormatError, 1, "dog"):
        load_data(tmp_path)


def test_a_broken_image_is_named_when_its_batch_is_due(tmp_path):
    write_photos(tmp_path, 4)
    broken = tmp_path / "2.png"
    broken.write_bytes(broken.read_bytes()[:100])
    batches = iter(load_data(tmp_path).batches(2))
    next(batches)
    with raises(FileFormatError, "2.png", "OSError"):
        next(batches)


def test_a_file_that_only_looks_like_an_image_is_named(tmp_path):
    (tmp_path / "a.jpg").write_text("hello")
    with raises(FileFormatError, "a.jpg", "UnidentifiedImageError"):
        only_batch(load_data(tmp_path))


def test_an_image_of_16_bits_is_refused_instead_of_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with raises(FileFormatError, "deep.png", "I;16", 8):
        read_image(tmp_path / "deep.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_usual_kind_of_image_becomes_three_channels(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    photo(mode="RGB").convert(mode).save(path)
    assert PLAIN(read_image(path)).shape == (3, 40, 60)


def test_a_palette_with_transparency_decodes_without_a_warning(tmp_path):
    image = photo().convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    torch.testing.assert_close(PLAIN(read_image(tmp_path / "a.png")), PLAIN(image.convert("RGB")))


def test_images_of_different_sizes_need_a_size(tmp_path):
    write_photos(tmp_path, 2)
    photo(50, 70).save(tmp_path / "z.png")
    with raises(FileFormatError, "z.png", "50×70", "0.png", "40×60", "--size"):
        list(load_data(tmp_path).batches(2))
    sized = DataOptions(preprocessing=Preprocessing(resize=ShorterSide(32), crop=(32, 32)))
    assert only_batch(load_data(tmp_path, sized)).shape == (3, 3, 32, 32)


# ----------------------------------------------------------------------------------------------------- array files

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
FLOATS = np.random.default_rng(0).standard_normal((6, 3, 8, 9)).astype(np.float32)
LABELS = np.array([3, 1, 4, 1, 5, 9])


def write(path, **arrays):
    match path.suffix:
        case ".npz":
            np.savez(path, **arrays)
        case ".npy":
            np.save(path, *arrays.values())
        case ".pt":
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
        case ".safetensors":
            save_file({name: torch.tensor(array) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
@pytest.mark.parametrize(("inputs", "labels"), [("images", "labels"), ("inputs", "targets"), ("x", "y")])
def test_inputs_and_labels_are_found_by_their_usual_names(tmp_path, suffix, inputs, labels):
    dataset = load_data(write(tmp_path / f"data{suffix}", **{inputs: FLOATS, labels: LABELS}))
    assert torch.equal(only_batch(dataset), torch.from_numpy(FLOATS))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == LABELS.tolist()
    assert dataset.preprocessing is None


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_single_array_is_the_inputs_whatever_its_name(tmp_path, suffix):
    dataset = load_data(write(tmp_path / f"data{suffix}", whatever=FLOATS))
    assert torch.equal(only_batch(dataset), torch.from_numpy(FLOATS))
    assert dataset.labels is None


def test_a_saved_tensor_and_a_saved_pair_are_read(tmp_path):
    torch.save(torch.from_numpy(FLOATS), tmp_path / "tensor.pt")
    torch.save((torch.from_numpy(FLOATS), torch.from_numpy(LABELS)), tmp_path / "pair.pt")
    assert torch.equal(only_batch(load_data(tmp_path / "tensor.pt")), torch.from_numpy(FLOATS))
    assert load_data(tmp_path / "pair.pt").labels is not None


def test_names_can_be_given(tmp_path):
    path = write(tmp_path / "data.npz", a=FLOATS, b=FLOATS + 1, c=LABELS)
    dataset = load_data(path, DataOptions(keys=Keys(inputs="b", labels="c")))
    assert torch.equal(only_batch(dataset), torch.from_numpy(FLOATS + 1))
    assert dataset.labels is not None


@pytest.mark.parametrize(
    ("arrays", "keys", "facts"),
    [
        ({"a": FLOATS, "b": LABELS}, Keys(), ("--input-key", "a", "float32 [6, 3, 8, 9]", "b", "int64 [6]")),
        ({"x": FLOATS, "data": FLOATS}, Keys(), ("x", "data", "--input-key")),
        ({"x": FLOATS, "y": LABELS, "labels": LABELS}, Keys(), ("y", "labels", "--label-key")),
        ({"x": FLOATS}, Keys(inputs="z"), ("z", "inputs", "x", "float32 [6, 3, 8, 9]")),
        ({"x": FLOATS}, Keys(labels="z"), ("z", "labels", "x", "float32 [6, 3, 8, 9]")),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_what_could_be_mistaken_is_an_error_that_lists_the_arrays(tmp_path, suffix, arrays, keys, facts):
    with raises(FileFormatError, *facts):
        load_data(write(tmp_path / f"data{suffix}", **arrays), DataOptions(keys=keys))


def test_a_key_for_a_single_array_is_refused(tmp_path):
    with raises(FileFormatError, "x.npy"):
        load_data(write(tmp_path / "x.npy", x=FLOATS), DataOptions(keys=Keys(inputs="x")))


@pytest.mark.parametrize("layout", ["last", "second"])
def test_uint8_arrays_are_images_wherever_their_channels_are(tmp_path, layout):
    pixels = PIXELS if layout == "last" else np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))
    dataset = load_data(write(tmp_path / "data.npy", x=pixels))
    expected = torch.stack([Preprocessing()(Image.fromarray(image)) for image in PIXELS])
    torch.testing.assert_close(only_batch(dataset), expected, rtol=0, atol=1e-6)


def test_uint8_arrays_are_resized_like_files(tmp_path):
    preprocessing = Preprocessing(resize=ShorterSide(16), crop=(14, 14))
    dataset = load_data(write(tmp_path / "x.npy", x=PIXELS), DataOptions(preprocessing=preprocessing))
    expected = torch.stack([preprocessing(Image.fromarray(image)) for image in PIXELS])
    assert torch.equal(only_batch(dataset), expected)


def test_grey_uint8_arrays_need_grey_preprocessing(tmp_path):
    path = write(tmp_path / "x.npy", x=PIXELS[..., 0])
    assert only_batch(load_data(path, DataOptions(preprocessing=GREY))).shape == (6, 1, 8, 9)
    resized = Preprocessing(resize=ShorterSide(4), mean=(0.0,), std=(1.0,))
    assert only_batch(load_data(path, DataOptions(preprocessing=resized))).shape == (6, 1, 4, 4)
    with raises(FileFormatError, 1, 3, "--mean"):
        load_data(path)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 9, 4), (6, 3, 8, 3), (6, 2, 2, 2, 3)])
def test_uint8_arrays_that_are_no_images_are_refused(tmp_path, shape):
    with raises(FileFormatError, f"uint8 {list(shape)}"):
        load_data(write(tmp_path / "x.npy", x=np.zeros(shape, dtype=np.uint8)))


def test_double_precision_becomes_single_and_other_dtypes_stay(tmp_path):
    assert only_batch(load_data(write(tmp_path / "d.npy", x=FLOATS.astype(np.float64)))).dtype == torch.float32
    assert only_batch(load_data(write(tmp_path / "h.npy", x=FLOATS.astype(np.float16)))).dtype == torch.float16
    assert only_batch(load_data(write(tmp_path / "i.npy", x=LABELS))).dtype == torch.int64
    save_file({"x": torch.from_numpy(FLOATS).bfloat16()}, tmp_path / "b.safetensors")
    assert only_batch(load_data(tmp_path / "b.safetensors")).dtype == torch.bfloat16


def test_arrays_in_the_other_byte_order_are_read(tmp_path):
    dataset = load_data(write(tmp_path / "x.npy", x=FLOATS.astype(">f4")))
    assert torch.equal(only_batch(dataset), torch.from_numpy(FLOATS))


def test_floats_are_normalised_only_on_request(tmp_path):
    path = write(tmp_path / "x.npy", x=FLOATS)
    options = DataOptions(normalization=Preprocessing(mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0)))
    expected = (torch.from_numpy(FLOATS) - torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)) / 2
    assert torch.equal(only_batch(load_data(path, options)), expected)


@pytest.mark.parametrize(
    ("array", "normalization", "facts"),
    [
        (FLOATS, Preprocessing(crop=(4, 4)), ("float32 [6, 3, 8, 9]", "uint8")),
        (FLOATS, GREY, ("float32 [6, 3, 8, 9]", 1, "--mean", "--std")),
        (LABELS, PLAIN, ("int64 [6]", 3, "--mean", "--std")),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(tmp_path, array, normalization, facts):
    with raises(FileFormatError, *facts):
        load_data(write(tmp_path / "x.npy", x=array), DataOptions(normalization=normalization))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello there", b"PK\x03\x04 and then nothing"])
def test_a_broken_file_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    with raises(FileFormatError, f"data{suffix}"):
        load_data(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_truncated_file_is_refused_by_name(tmp_path, suffix):
    path = write(tmp_path / f"data{suffix}", x=FLOATS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with raises(FileFormatError, f"data{suffix}"):
        load_data(path)


class Evil:
    def __reduce__(self):
        return print, ("code from a file ran",)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path, capsys, suffix):
    path = tmp_path / f"data{suffix}"
    if suffix == ".pt":
        torch.save({"x": Evil()}, path)
    else:
        array = np.array([Evil()], dtype=object)
        np.savez(path, x=array) if suffix == ".npz" else np.save(path, array)
    with pytest.raises(FileFormatError):
        load_data(path)
    assert "ran" not in capsys.readouterr().out


BROKEN_HEADERS = ["(10000000000000, 3)", "(-1, 3)", "(6, 3, 8", "(2**3,)", "(99999999999999999999999,)"]


@pytest.mark.parametrize("shape", BROKEN_HEADERS)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_whose_header_states_what_cannot_be_is_refused(tmp_path, shape, suffix):
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(100)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    with raises(FileFormatError, f"x{suffix}"):
        load_data(path)


def test_an_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("notes.txt", "hello")
    with raises(FileFormatError, "x.npz", "notes.txt"):
        load_data(tmp_path / "x.npz")


STRANGE_TENSORS = {
    "sparse_coo": lambda: torch.eye(6).to_sparse(),
    "sparse_csr": lambda: torch.eye(6).to_sparse_csr(),
    "meta": lambda: torch.eye(6, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.eye(6), 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", STRANGE_TENSORS)
def test_a_tensor_that_is_not_plain_is_refused_as_inputs_and_as_labels(tmp_path, kind):
    torch.save(STRANGE_TENSORS[kind](), tmp_path / "strange.pt")
    with raises(FileFormatError, "strange.pt", kind):
        load_data(tmp_path / "strange.pt")
    with raises(FileFormatError, "strange.pt", kind):
        load_data(write(tmp_path / "x.npy", x=FLOATS), DataOptions(labels=tmp_path / "strange.pt"))


@pytest.mark.skipif(np.longdouble(0).itemsize == 8, reason="long doubles are doubles here")
def test_long_doubles_are_refused_as_inputs_and_as_labels(tmp_path):
    long = write(tmp_path / "long.npy", x=LABELS.astype(np.longdouble))
    with raises(FileFormatError, "long.npy", "float128 [6]", 64):
        load_data(long)
    with raises(FileFormatError, "long.npy", "labels", "float128 [6]"):
        load_data(write(tmp_path / "x.npy", x=FLOATS), DataOptions(labels=long))


def test_what_is_no_data_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    with raises(FileFormatError, "x.csv", ".npz"):
        load_data(tmp_path / "x.csv")
    (tmp_path / "data").write_text("1,2")
    with raises(FileFormatError, tmp_path / "data", ".npz") as caught:
        load_data(tmp_path / "data")
    assert ".txt" not in str(caught.value)
    with raises(FileFormatError, tmp_path / "data", ".txt", ".csv", ".npy"):
        read_labels(tmp_path / "data")
    with raises(FileNotFoundError, "absent.npy"):
        load_data(tmp_path / "absent.npy")
    np.save(tmp_path / "text.npy", np.array(["a", "b"]))
    with raises(FileFormatError, "text.npy", "<U1 [2]"):
        load_data(tmp_path / "text.npy")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    with raises(FileFormatError, "numbers.pt", "'a'", "int"):
        load_data(tmp_path / "numbers.pt")
    torch.save(torch.zeros(3, dtype=torch.complex64), tmp_path / "complex.pt")
    with raises(FileFormatError, "complex.pt"):
        load_data(tmp_path / "complex.pt")


@pytest.mark.parametrize("shape", [(0, 3), ()])
def test_no_samples_are_refused(tmp_path, shape):
    with raises(FileFormatError, "x.npy", list(shape)):
        load_data(write(tmp_path / "x.npy", x=np.zeros(shape, dtype=np.float32)))


# ------------------------------------------------------------------------------------------------ labels and limits


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".npz", ".pt"])
def test_labels_can_come_from_a_file_of_their_own(tmp_path, suffix):
    path = tmp_path / f"labels{suffix}"
    if suffix == ".txt":
        path.write_text("\n".join(map(str, LABELS)))
    else:
        write(path, labels=LABELS)
    dataset = load_data(write(tmp_path / "x.npy", x=FLOATS), DataOptions(labels=path))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("labels", "facts"),
    [
        (LABELS[:4], (4, 6)),
        (LABELS.astype(np.float32), ("float32 [6]",)),
        (np.eye(6, dtype=np.int64), ("int64 [6, 6]", "argmax")),
        (np.array([0, 1, 2, -1, 0, 0]), (3, -1)),
        (np.array([0, 2**64 - 1, 0, 0, 0, 0], dtype=np.uint64), (1, 18446744073709551615)),
        (np.array(3), ("int64 []",)),
        (np.ones(6, dtype=bool), ("bool [6]",)),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, facts):
    with raises(FileFormatError, "data.npz", *facts):
        load_data(write(tmp_path / "data.npz", x=FLOATS, y=labels))


def test_a_text_file_of_labels_holds_numbers_only(tmp_path):
    (tmp_path / "labels.txt").write_text("1\ncat\n")
    options = DataOptions(labels=tmp_path / "labels.txt")
    with raises(FileFormatError, "labels.txt", 2, "cat"):
        load_data(write(tmp_path / "x.npy", x=FLOATS), options)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"0 1\n0 1\n0 1\n", (1, "'0 1'")),  # six words, and no six lines
        (b"1\n2\n\n3\n4\n5\n6\n", (3,)),
        (b"label\n1\n2\n", (1, "'label'")),
        (b"1.0\n", (1, "'1.0'")),
        (b"1_0\n", (1, "'1_0'")),
        (b"1\n" + b"9" * 5000, (2, 40 * "9")),
        (b"1,2,3,4,5,6", (1, "'1,2,3,4,5,6'")),
        ("1\n".encode("utf-16"), ("UTF-8",)),
    ],
)
def test_a_text_file_of_labels_is_read_by_lines(tmp_path, content, facts):
    (tmp_path / "labels.txt").write_bytes(content)
    with raises(FileFormatError, "labels.txt", *facts) as caught:
        load_data(write(tmp_path / "x.npy", x=FLOATS), DataOptions(labels=tmp_path / "labels.txt"))
    assert len(str(caught.value)) < 1000


def test_a_text_file_of_labels_may_come_from_any_editor(tmp_path):
    (tmp_path / "labels.txt").write_bytes(b"\xef\xbb\xbf3\r\n 1\r\n4\r\n1\r\n5\r\n9\r\n\r\n")
    assert read_labels(tmp_path / "labels.txt").tolist() == LABELS.tolist()


def test_labels_of_their_own_stand_for_those_in_the_data_and_the_description_says_so(tmp_path):
    path = write(tmp_path / "data.npz", x=FLOATS, y=FLOATS)
    dataset = load_data(path, DataOptions(labels=write(tmp_path / "labels.npy", y=LABELS)))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == LABELS.tolist()
    assert has(dataset.description, tmp_path / "data.npz", tmp_path / "labels.npy")


def test_a_limit_takes_a_random_choice_that_only_the_seed_decides(tmp_path):
    array = np.arange(1000, dtype=np.float32)[:, None]
    path = write(tmp_path / "data.npz", x=array, y=np.arange(1000))
    first, again, other = (load_data(path, DataOptions(limit=50, seed=seed)) for seed in (0, 0, 1))
    assert first.indices == again.indices != other.indices
    assert list(first.indices) == sorted(set(first.indices))
    assert max(first.indices) > 500
    assert first.labels is not None
    assert torch.equal(only_batch(first)[:, 0].long(), first.labels)
    assert has(first.description, 50, 1000)


def test_a_limit_above_the_number_of_samples_takes_all(tmp_path):
    assert len(load_data(write(tmp_path / "x.npy", x=FLOATS), DataOptions(limit=100))) == 6


def test_labels_that_nobody_wants_are_not_looked_at(tmp_path):
    path = write(tmp_path / "data.npz", x=FLOATS, y=FLOATS)
    assert load_data(path, DataOptions(want_labels=False)).labels is None
    with raises(FileFormatError, "labels", "float32 [6, 3, 8, 9]"):
        load_data(path)


def test_a_limit_below_one_is_refused():
    with raises(RecipeError, "limit=0"):
        DataOptions(limit=0)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    with raises(RecipeError, f"seed={seed}"):
        DataOptions(limit=5, seed=seed)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_less_than_one_sample_are_refused(tmp_path, size):
    with raises(RecipeError, size):
        load_data(write(tmp_path / "x.npy", x=FLOATS)).batches(size)


def test_batches_can_be_gone_through_again(tmp_path):
    batches = load_data(write(tmp_path / "x.npy", x=FLOATS)).batches(4)
    assert [len(batch) for batch in batches] == [4, 2]
    assert len(batches) == 2
    assert torch.equal(torch.cat(list(batches)), torch.from_numpy(FLOATS))


def test_an_image_that_would_become_too_large_is_refused():
    thin = Image.new("RGB", (1, 60_000))
    with raises(FileFormatError, "1×60000", 256):
        Preprocessing(resize=ShorterSide(256), crop=(224, 224))(thin)


def test_samples_that_are_the_same_numbers_again_and_again_are_refused(tmp_path):
    torch.save(torch.zeros(1).expand(1 << 34, 4), tmp_path / "expanded.pt")
    with raises(FileFormatError, "expanded.pt", f"{1 << 34:,}"):
        load_data(tmp_path / "expanded.pt", DataOptions())
