"""Samples come in many forms and leave as equal batches, or are refused with a reason."""

import collections
import warnings

import numpy as np
import pytest
import torch
from facts import has, raises
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from roundwise.engine.calibration import copy_samples, read_calibration
from roundwise.engine.store import ActivationStore
from roundwise.errors import CalibrationError
from roundwise.frontends import Signature, TorchExport

ONE = Signature(("x",), ("x",))
TWO = Signature(("left", "right"), ("left", "right"))
IMAGES = torch.randn(10, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10)


@pytest.fixture
def store():
    return ActivationStore(1 << 30, torch.device("cpu"))


@pytest.fixture
def read(store):
    def read(data, signature=ONE, batch_size=4):
        return read_calibration(data, signature, batch_size, store)

    return read


def joined(calibration, leaf=0):
    return torch.cat([batch[leaf] for batch in calibration.batches])


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        ((3, 224, 224), torch.float32, 6),
        ((3, 224, 224), torch.float16, 13),
        ((3, 32, 32), torch.float32, 32),
        ((), torch.int64, 32),
        ((3, 1024, 1024), torch.float32, 1),
    ],
)
def test_where_nothing_is_said_there_are_32_at_a_time_or_so_few_that_they_are_small(shape, dtype, size, read):
    samples = torch.zeros(33, *shape, dtype=dtype)
    for data in (samples, [samples[:0], samples[:20], samples[20:]]):
        batches = read(data, batch_size=None).batches
        assert [len(batch[0]) for batch in batches[:2]] == [size, min(size, 33 - size)]


def test_on_an_accelerator_32_at_a_time_whatever_their_size():
    store = ActivationStore(1 << 30, torch.device("cuda"))
    batches = read_calibration(torch.zeros(33, 3, 1024, 1024), ONE, None, store).batches
    assert [len(batch[0]) for batch in batches] == [32, 1]


def test_an_example_may_be_larger_than_a_batch(read):
    calibration = read(IMAGES, batch_size=4)
    for count in (3, 4, 9, 10, 25):
        ((example,), _) = calibration.example(count)
        assert torch.equal(example, IMAGES.repeat(3, 1, 1, 1)[:count])
        ((taken,), _) = copy_samples(calibration, count)
        assert torch.equal(taken, IMAGES[:count])


def dict_loader(**columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return DataLoader(rows, batch_size=3)


FORMS = {
    "a tensor": lambda: IMAGES,
    "an array": lambda: IMAGES.numpy(),
    "a tuple of inputs": lambda: (IMAGES,),
    "inputs and labels in a tuple": lambda: (IMAGES, LABELS),
    "a dict by the parameter's name": lambda: {"x": IMAGES},
    "a dict by a usual name, and labels": lambda: {"image": IMAGES, "label": LABELS},
    "a list of batches of odd sizes": lambda: [IMAGES[:1], IMAGES[1:8], IMAGES[8:8], IMAGES[8:]],
    "a list of arrays": lambda: [IMAGES[:5].numpy(), IMAGES[5:].numpy()],
    "a loader of tensors": lambda: DataLoader(list(IMAGES), batch_size=3),
    "a loader of (input, label) pairs": lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=7),
    "a loader of dicts by the parameter's name": lambda: dict_loader(x=IMAGES, label=LABELS),
    "a loader of dicts by a usual name": lambda: dict_loader(pixel_values=IMAGES, label=LABELS),
    "a generator that can be read once": lambda: (batch for batch in IMAGES.split(6)),
    "channels last in memory": lambda: IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "a loader of samples with channels last": lambda: [
        part.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for part in IMAGES.split(3)
    ],
    "an array with negative strides": lambda: np.ascontiguousarray(IMAGES.numpy()[:, :, :, ::-1])[:, :, :, ::-1],
    "with a gradient": lambda: IMAGES.clone().requires_grad_() * 1,
    "a parameter": lambda: nn.Parameter(IMAGES),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_samples_are_the_same_however_they_are_handed_over(read, form):
    calibration = read(form())
    assert calibration.samples == 10
    assert [batch[0].shape[0] for batch in calibration.batches] == [4, 4, 2]
    assert torch.equal(joined(calibration), IMAGES)
    for (leaf,) in calibration.batches:
        assert type(leaf) is torch.Tensor
        assert leaf.stride() == torch.empty(leaf.shape).stride()
        assert not leaf.requires_grad


def test_one_channel_in_channels_last_order_is_brought_into_plain_order(read):
    images = torch.randn(8, 1, 4, 5).to(memory_format=torch.channels_last)
    images = images.as_strided(images.shape, (20, 1, 5, 1))
    assert images.is_contiguous()
    for (leaf,) in read(images).batches:
        assert leaf.stride() == (20, 20, 5, 1)


def test_a_read_only_array_is_read_without_a_warning(read):
    array = IMAGES.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(joined(read(array)), IMAGES)


def test_a_tensor_of_the_callers_is_sliced_and_not_copied(read, store):
    calibration = read(IMAGES)
    assert [batch[0].data_ptr() for batch in calibration.batches] == [part.data_ptr() for part in IMAGES.split(4)]
    assert store.in_memory == 0


def test_samples_of_a_loader_are_counted_while_they_are_held(read, store):
    calibration = read(list(IMAGES.split(3)))
    assert store.in_memory == IMAGES.nbytes
    del calibration
    assert store.in_memory == 0


def test_samples_that_are_handed_over_are_left_as_they_were(read):
    before = IMAGES.clone()
    array = IMAGES.numpy()
    read([IMAGES, IMAGES])
    read(array)
    assert torch.equal(IMAGES, before)


def test_labels_are_dropped_with_a_note(read):
    calibration = read(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3))
    assert len(calibration.notes) == 1
    assert "label" in calibration.notes[0]
    (note,) = read({"x": IMAGES, "label": LABELS}).notes
    assert has(note, "label")
    assert read(IMAGES).notes == ()


def test_optional_inputs_are_not_mistaken_for_labels(read):
    masked = Signature(("x",), ("x", "mask"))
    calibration = read({"x": IMAGES, "mask": LABELS}, masked)
    assert torch.equal(joined(calibration, 1), LABELS)


def test_several_inputs_come_as_tuple_list_or_dict_and_keep_their_order(read):
    left, right = torch.randn(9, 3), torch.randn(9, 2, 2)
    for data in (
        (left, right),
        (left, right, torch.arange(9)),
        {"left": left, "right": right},
        [(left[:5], right[:5]), (left[5:], right[5:])],
        [[left[:5], right[:5]], [left[5:], right[5:]]],
        [{"right": right, "left": left, "id": torch.arange(9)}],
    ):
        calibration = read(data, TWO)
        assert torch.equal(joined(calibration, 0), left)
        assert torch.equal(joined(calibration, 1), right)


def test_a_model_of_any_number_of_inputs_takes_all(read):
    assert len(read((IMAGES, LABELS), Signature((), (), variadic=True)).batches[0]) == 2


def test_a_dict_that_fits_no_parameter_is_the_input_itself(read):
    calibration = read([{"rgb": IMAGES, "depth": LABELS}])
    args, kwargs = calibration.example(2)
    assert kwargs == {}
    assert list(args[0]) == ["rgb", "depth"]


def test_a_model_of_any_names_takes_all_keys(read):
    class Wrapper(nn.Module):
        def forward(self, **batch):
            return batch["left"]

    args, kwargs = read([{"left": IMAGES, "right": LABELS}], TorchExport().facts(Wrapper()).signature).example(2)
    assert args == ()
    assert list(kwargs) == ["left", "right"]


def test_an_example_repeats_samples_where_there_are_too_few(read):
    (example,), _ = read(IMAGES[:1]).example(3)
    assert torch.equal(example, IMAGES[:1].expand(3, 3, 4, 5))


def test_kept_samples_are_copies(read):
    (kept,), _ = copy_samples(read(IMAGES), 3)
    assert torch.equal(kept, IMAGES[:3])
    assert kept.data_ptr() != IMAGES.data_ptr()


def test_an_input_that_counts_no_samples_becomes_a_constant(read):
    calibration = read([(IMAGES[:4], 0.5), (IMAGES[4:], 0.5)], TWO)
    assert [batch[1] for batch in calibration.batches] == [0.5] * 3


# ------------------------------------------------------------------------------------------------ what is refused


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


REFUSED = {
    "an empty list": ([], ("DataLoader",)),
    "an empty tensor": (IMAGES[:0], ("DataLoader",)),
    "an empty loader": (DataLoader(Endless()), ("DataLoader",)),
    "a path": ("images/", ("str", "DataLoader")),
    "a number": (256, ("int", "DataLoader")),
    "nothing": (None, ("NoneType", "DataLoader")),
    "a dataset": (TensorDataset(IMAGES), ("TensorDataset", "DataLoader(dataset, batch_size=32)")),
    "a list of paths": (["a.png"], ("str",)),
    "a tensor without samples": (torch.tensor(1.0), (0, "tensor(1.)")),
    "an array of objects": (np.array([object()]), ("object", "[1]")),
    "samples of several shapes": ([IMAGES, IMAGES[:, :2]], (1, "[2, 4, 5]", "[3, 4, 5]")),
    "samples of several dtypes": ([IMAGES, IMAGES.double()], (1, "float64", "float32")),
    "batches of several structures": ([IMAGES, {"x": {"y": IMAGES}}], (1, "TreeSpec")),
}


@pytest.mark.parametrize(("data", "facts"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_reason(read, data, facts):
    with raises(CalibrationError, *facts):
        read(data)


def test_a_generator_that_was_read_before_is_named_as_the_cause(read):
    batches = iter([IMAGES])
    read(batches)
    with raises(CalibrationError, "iterator"):
        read(batches)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_sample(read, value, kind):
    images = IMAGES.clone()
    images[7, 1, 2, 3] = value
    with raises(CalibrationError, 7, kind, 1, 10):
        read(images)
    with raises(CalibrationError, 7, kind, 2):
        read(list(images.split(3)))


def test_inputs_that_disagree_on_the_number_of_samples_are_an_error(read):
    with raises(CalibrationError, 0, "[10, 3, 4, 5]", "[9]"):
        read((IMAGES, LABELS[:9]), TWO)


def test_keys_that_fit_no_parameters_are_an_error_that_names_both(read):
    with raises(CalibrationError, "'left', 'other'", "'left', 'right'"):
        read([{"left": IMAGES, "other": LABELS}], TWO)


def test_a_constant_input_that_changes_between_batches_is_an_error(read):
    with raises(CalibrationError, 0.25, 1, 0.5):
        read([(IMAGES, 0.5), (IMAGES, 0.25)], TWO)


def test_a_remainder_that_a_program_of_fixed_batch_cannot_take_is_an_error(read):
    fixed = Signature(("x",), ("x",), batch=4)
    assert [batch[0].shape[0] for batch in read(IMAGES[:8], fixed, batch_size=32).batches] == [4, 4]
    with raises(CalibrationError, 4, 10, 2):
        read(IMAGES, fixed)


# ---------------------------------------------------------------------------------------------------- signatures


class Model(nn.Module):
    def forward(self, left, right, scale=1.0, *rest, mask=None, **others):
        return left + right * scale


def test_a_signature_is_read_from_forward():
    signature = TorchExport().facts(Model()).signature
    assert signature == Signature(
        ("left", "right"),
        ("left", "right", "scale", "mask"),
        variadic=True,
        any_names=True,
        keyword_only=("mask",),
        defaults={"scale": 1.0, "mask": None},
    )


def test_a_signature_is_read_from_an_exported_program():
    left, right = torch.randn(4, 3), torch.randn(4, 3)
    program = torch.export.export(Model(), (left, right), {"mask": None})
    assert TorchExport().facts(program).signature == Signature(
        ("left", "right", "mask"), ("left", "right", "mask"), batch=4
    )
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, {0: batch}, None)
    dynamic = torch.export.export(
        Model(), (left, right, 2.0), dynamic_shapes=dict(zip(("left", "right", "scale"), shapes, strict=True))
    )
    assert TorchExport().facts(dynamic).signature.batch is None


def test_a_named_tuple_and_an_ordered_dict_are_read_as_tuple_and_dict(read):
    pair = collections.namedtuple("pair", "image label")(IMAGES, LABELS)
    assert torch.equal(joined(read([pair])), IMAGES)
    assert torch.equal(joined(read(collections.OrderedDict(x=IMAGES))), IMAGES)
