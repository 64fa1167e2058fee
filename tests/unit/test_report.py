"""The printed report names each rounding method; a report that is read from a file holds numbers that can be."""

import copy
import json

import pytest
import torch
from facts import raises
from torch import nn

import roundwise as rw

SIGNED = {"zero_point", "low", "high", "smallest", "largest", "finest", "coarsest", "lower_ends", "upper_ends"}
SIGNED |= {"loss", "held_out", "epoch"}  # a mean of differences may be below 0 by rounding


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    quantize = rw.Quantize(rw.Weights(bits=3), rw.rounding.Nearest(), activations=rw.Activations(bits=8))
    data = torch.randn(16, 3, 6, 6), torch.randint(0, 3, (16,))
    report = rw.finetune(model, data, (quantize, rw.Finetune(epochs=1, batch_size=4))).report
    return json.loads(json.dumps(report.as_dict()))


def places(data, path=(), field=""):
    """The paths to all numbers, each with the name of its field."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        inner = key if isinstance(key, str) and not field.endswith("seconds") else field
        if type(value) in (int, float):
            yield (*path, key), inner
        else:
            yield from places(value, (*path, key), inner)


def test_no_number_of_a_report_is_read_that_cannot_be_negative_and_is(plain):
    tried = set()
    for path, field in places(plain):
        changed = copy.deepcopy(plain)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = type(inner[path[-1]])(-2)
        if field in SIGNED:
            rw.Report.from_dict(changed)
        elif field not in tried:
            with raises(rw.FileFormatError, field, "-2"):
                rw.Report.from_dict(changed)
            tried.add(field)
    assert {"error", "samples", "seconds", "flips", "shape", "bits", "accuracy"} <= tried


@pytest.mark.parametrize(
    ("field", "value"),
    [("shape", [2**62] * 300), ("shape", [1] * 200_000), ("counts", []), ("counts", [1] * 30_000)],
    ids=["too many weights", "too many sizes", "no bins", "too many bins"],
)
def test_shapes_and_histograms_that_cannot_be_are_refused(plain, field, value):
    changed = copy.deepcopy(plain)
    (layer, *_) = changed["stages"][1]["layers"] or changed["stages"][0]["layers"]
    (layer if field == "shape" else layer["summary"])[field] = value
    with raises(rw.FileFormatError, field):
        rw.Report.from_dict(changed)


def test_the_printed_report_names_each_rounding_method_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    other = rw.Weights(rounding=rw.rounding.Floor())
    recipe = rw.Quantize(rounding=rw.rounding.Nearest(), overrides={"1": other})
    shown = str(rw.quantize(model, torch.randn(8, 8), recipe).report)
    assert shown.count("nearest, floor") == 1
