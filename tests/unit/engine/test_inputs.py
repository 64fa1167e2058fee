"""Whatever `forward` has a parameter for is an input; labels are what is left over; two readings are an error."""

import collections
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import roundwise as rw
from roundwise.engine.calibration import read_calibration
from roundwise.engine.store import ActivationStore
from roundwise.frontends import TorchExport

X, FLOATS = torch.randn(8, 6), torch.randn(8, 6)
IDS, MASK, ONES = torch.arange(40).reshape(8, 5) % 30, torch.arange(5).expand(8, 5) < 3, torch.ones(8, 5).long()
CLASSES, LENGTHS = torch.arange(8) % 3, torch.arange(8) + 1


def model(parameters):
    """A module whose forward has these parameters."""
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {parameters}): raise AssertionError", scope)  # noqa: S102  The shortest way to write one
    return type("Model", (nn.Module,), {"forward": scope["forward"]})()


def inputs(parameters, data):
    """How samples reach a model: `(args, kwargs)`, and the notes."""
    signature = TorchExport().facts(model(parameters)).signature
    with ActivationStore(1 << 30, torch.device("cpu")) as store:
        calibration = read_calibration(data, signature, 8, store)
    return *calibration.example(8), calibration.notes


def same(found, expected):
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    mask: torch.Tensor


Pair = collections.namedtuple("Pair", "image label")
Masked = collections.namedtuple("Masked", "mask x")
HF = "input_ids=None, attention_mask=None, token_type_ids=None, labels=None, return_dict=True"

READ = {
    "input and labels of a loader": ("x", DataLoader(TensorDataset(X, CLASSES), 8), (X,), {}, 1),
    "an input alone in a tuple": ("x", (X,), (X,), {}, 0),
    "an input alone in a list of tuples": ("x, mask=None", [(X,)], (X,), {}, 0),
    "ids and mask": ("input_ids, attention_mask=None", [(IDS, MASK)], (IDS, MASK), {}, 0),
    "ids and a mask of whole numbers": (HF, (IDS, ONES), (IDS, ONES), {}, 0),
    "three entries for three parameters": (HF, DataLoader(TensorDataset(IDS, ONES, IDS), 8), (IDS, ONES, IDS), {}, 0),
    "more than forward takes": ("input_ids, attention_mask=None", [(IDS, MASK, CLASSES)], (IDS, MASK), {}, 1),
    "an optional input of floats": ("x, condition=None", (X, FLOATS), (X, FLOATS), {}, 0),
    "lengths": ("x, lengths=None", (X, LENGTHS), (X, LENGTHS), {}, 0),
    "a step of diffusion": ("x, timestep=None", [[X, LENGTHS]], (X, LENGTHS), {}, 0),
    "a flag": ("x, both=False", [(X, True)], (X, True), {}, 0),
    "nothing for an optional input": ("x, mask=None", [(X, None)], (X, None), {}, 0),
    "targets by position": ("x, targets=None", DataLoader(TensorDataset(X, CLASSES), 8), (X,), {}, 1),
    "labels before another input": ("x, labels=None, mask=None", [(X, CLASSES, FLOATS)], (X,), {"mask": FLOATS}, 1),
    "labels that forward requires": ("x, labels", (X, CLASSES), (X, CLASSES), {}, 0),
    "a dict with labels": (HF, {"input_ids": IDS, "attention_mask": ONES, "labels": CLASSES}, (), None, 1),
    "a dict in another order": ("x, mask=None", {"mask": FLOATS, "x": X}, (), {"x": X, "mask": FLOATS}, 0),
    "a dict like BatchEncoding": (HF, collections.UserDict(input_ids=IDS, attention_mask=ONES), (), None, 0),
    "a usual name beside an optional input": ("x, mask=None", {"image": X, "mask": FLOATS}, (X,), {"mask": FLOATS}, 0),
    "a dict for any names": ("x, **others", {"x": X, "mask": FLOATS, "labels": CLASSES}, (), None, 1),
    "a dict for *args and **kwargs": ("*args, **kwargs", {"x": X, "mask": FLOATS}, (), {"x": X, "mask": FLOATS}, 0),
    "a tuple for *args": ("*args", (X, FLOATS), (X, FLOATS), {}, 0),
    "an input by name only": ("x, *, mask=None", {"x": X, "mask": FLOATS}, (), {"x": X, "mask": FLOATS}, 0),
    "labels beside an input by name only": ("x, *, mask=None", [(X, CLASSES)], (X,), {}, 1),
    "nested inputs": ("x, state", [(X, (FLOATS, FLOATS))], (X, (FLOATS, FLOATS)), {}, 0),
    "a named tuple of other names": ("x", [Pair(X, CLASSES)], (X,), {}, 1),
    "a named tuple of the parameters": ("x, mask=None", [Masked(FLOATS, X)], (), {"x": X, "mask": FLOATS}, 0),
    "a dataclass": ("x, mask=None", [Sample(X, FLOATS)], (), {"x": X, "mask": FLOATS}, 0),
    "arrays": ("x, mask=None", [(X.numpy(), FLOATS.numpy())], (X, FLOATS), {}, 0),
    "targets of the same kind, in a list": ("x", [(X, FLOATS)], (X,), {}, 1),
}


@pytest.mark.parametrize(("parameters", "data", "args", "kwargs", "notes"), READ.values(), ids=READ)
def test_every_value_reaches_its_parameter(parameters, data, args, kwargs, notes):
    found_args, found_kwargs, found_notes = inputs(parameters, data)
    if kwargs is None:  # all of the dict but labels
        kwargs = {name: value for name, value in data.items() if name != "labels"}
    assert same(found_args, args)
    assert same(found_kwargs, kwargs)
    assert len(found_notes) == notes, found_notes


AMBIGUOUS = {
    "classes for a mask": ("x, mask=None", [(X, CLASSES)], ("'mask'", "int64 [8]", "{'x': …, 'mask': …}")),
    "classes as an array": ("x, mask=None", [(X, CLASSES.numpy())], ("'mask'", "int64 [8]")),
    "classes in a column": ("x, mask=None", [(X, CLASSES[:, None])], ("'mask'", "int64 [8, 1]")),
    "classes for a flag": ("x, both=False", [(X, CLASSES)], ("'both'", False)),
    "values for a number": ("x, scale=1.0", [(X, FLOATS)], ("'scale'", 1.0, "float32 [8, 6]")),
    "text for an input": ("x, mask=None", [(X, ["a"] * 8)], ("'mask'", "list")),
    "classes in the third place": (HF, [(IDS, ONES, CLASSES)], ("'token_type_ids'", 3, "'attention_mask': …")),
    "a tuple of batches": ("x", (X, FLOATS, X[:3]), (3, "list(data)", "[data]")),
    "a tuple of batches of arrays": ("x", (X.numpy(), FLOATS.numpy()), (2, "list(data)")),
    "a tuple of pairs": ("x", ((X, CLASSES), (X, CLASSES)), (2, "list(data)")),
    "a tuple of pairs for two inputs": ("x, y", ((X, CLASSES), (X, CLASSES)), (2, "list(data)")),
    "a tuple of dicts": ("x, y=None", ({"x": X}, {"x": FLOATS}), (2, "list(data)")),
}


@pytest.mark.parametrize(("parameters", "data", "facts"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_two_readings_are_an_error_that_says_how_to_be_clear(parameters, data, facts):
    with raises(rw.CalibrationError, *facts):
        inputs(parameters, data)


def test_the_clear_forms_are_read():
    assert same(inputs("x, mask=None", [{"x": X, "mask": CLASSES}])[1], {"x": X, "mask": CLASSES})
    assert same(inputs("x, y", [((X, CLASSES), (X, CLASSES))])[0], ((X, CLASSES), (X, CLASSES)))
    assert same(inputs("x", [X[:4], FLOATS[:4]])[0], (torch.cat([X[:4], FLOATS[:4]]),))


def test_names_that_fit_nothing_are_named_beside_the_parameters():
    with raises(rw.CalibrationError, "'rgb'", "'input_ids', 'attention_mask'"):
        inputs(HF, {"rgb": X})


def test_a_mask_by_position_is_an_input_of_the_quantized_network():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(30, 8), nn.Linear(8, 3)

        def forward(self, input_ids, attention_mask=None):
            h = self.embed(input_ids)
            if attention_mask is None:
                return self.out(h.mean(1))
            return self.out((h * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))

    encoder, mask = Encoder().eval(), MASK.float()
    quantized = rw.quantize(encoder, [(IDS, mask)], quantizing(rw.Weights(bits=16), rounding=rw.rounding.Nearest()))
    with torch.no_grad():
        torch.testing.assert_close(quantized(IDS, mask), encoder(IDS, mask), rtol=1e-3, atol=1e-3)


def test_text_and_other_objects_are_no_batches():
    for batch in ("text", 7, object()):
        with raises(rw.CalibrationError, type(batch).__name__):
            inputs("x", [batch])


def test_arrays_that_are_no_numbers_are_refused():
    with raises(rw.CalibrationError, "object"):
        inputs("x", [(np.array([object()]),)])
