"""Arguments of operations that are no tensors come back from a file as they were."""

import pytest
import torch
from facts import raises
from fuzz.hostile import program, written
from recipes import quantizing
from torch import nn

import roundwise as rw

NEAREST = quantizing(rounding=rw.rounding.Nearest())
SAMPLES = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Arguments(nn.Module):
    """Operations with an infinite number, a memory format, a dtype and a device among their arguments."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, negative=False):
        y = self.layer(x).masked_fill(x > 1, float("-inf")).clone(memory_format=torch.contiguous_format)
        y = y.to(torch.float64) + torch.ones(6, dtype=torch.float64, device="cpu")
        return -y if negative else y


def test_a_saved_network_keeps_numbers_formats_and_inputs_that_are_fixed(tmp_path):
    quantized = rw.quantize(Arguments().eval(), [{"x": SAMPLES, "negative": True}], NEAREST)
    quantized.save(tmp_path / "model.rw")
    loaded = rw.load(tmp_path / "model.rw")
    expected = quantized(SAMPLES, negative=True)
    assert expected.isinf().any()
    assert torch.equal(loaded(SAMPLES, negative=True), expected)
    with raises(rw.ModelError, "'negative'", "True"):
        loaded(SAMPLES, negative=False)


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(5, 6), nn.Linear(6, 2)

    def forward(self, words):
        return self.layer(self.table(words))


def test_a_loaded_network_of_whole_numbers_is_exported_and_checked_on_numbers_that_it_takes(tmp_path):
    words = torch.randint(0, 5, (4, 7), generator=torch.Generator().manual_seed(0))
    rw.quantize(Lookup().eval(), words, NEAREST).save(tmp_path / "model.rw")
    exported = rw.export(rw.load(tmp_path / "model.rw"), tmp_path / "model.onnx")
    assert exported.path.exists()


class Fixed(nn.Module):
    """A network with inputs that are no tensors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, top, word="", flag=None):
        return self.layer(x.clamp_max(top) if word else x)


@pytest.mark.parametrize("top", [float("inf"), 1.5, 3, True])
def test_an_input_that_is_fixed_to_a_number_is_saved_and_read(top, tmp_path):
    model = rw.quantize(Fixed().eval(), [{"x": SAMPLES, "top": top, "word": "a", "flag": None}], NEAREST)
    model.save(tmp_path / "model.rw")
    rw.load(tmp_path / "model.rw").save(tmp_path / "again.rw")
    again = rw.load(tmp_path / "again.rw")
    assert torch.equal(again(SAMPLES, top, "a", None), model(SAMPLES, top, "a", None))
    with raises(rw.ModelError, "'top'"):
        again(SAMPLES, 7.0, "a", None)


def test_an_output_that_is_a_tensor_where_a_list_of_them_belongs_is_refused(tmp_path):
    relu = {"op": "call_function", "name": "y", "target": "aten.relu.default", "args": {"list": [{"node": "x"}]}}
    description, tensors = program([relu | {"kwargs": {}}], {})
    rw.load(written(tmp_path / "model.rw", (description, tensors)))
    description["graph"]["nodes"][-1]["args"] = {"list": [{"node": "y"}]}
    with raises(rw.FileFormatError, "'y'"):
        rw.load(written(tmp_path / "model.rw", (description, tensors)))
