"""A quantized network is a module: it can be a part of a larger model, which is run, exported and quantized again."""

import pytest
import torch
from facts import has
from recipes import quantizing
from torch import nn
from torch.export import Dim

import roundwise as rw

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ACTIVATIONS = pytest.mark.parametrize("activations", [None, rw.Activations(8)], ids=["weights", "activations"])


def body():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)).eval()


def with_quantized_part(activations, dynamic=None, folder=None):
    part = rw.quantize(
        body(), IMAGES, rw.Quantize(rw.Weights(4), rw.rounding.Nearest(), activations=activations), dynamic=dynamic
    )
    if folder is not None:
        part.save(folder / "part.rw")
        part = rw.load(folder / "part.rw")
    return nn.Sequential(part, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval()


@ACTIVATIONS
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_a_model_with_a_quantized_part_is_exported_for_any_number_of_samples(activations, loaded, tmp_path):
    model = with_quantized_part(activations, folder=tmp_path if loaded else None)
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=({0: Dim("batch")},))
    for samples in (1, 7):
        assert torch.equal(program.module()(IMAGES[:samples]), model(IMAGES[:samples]))


def test_the_dynamic_sizes_of_a_part_are_dynamic_in_the_whole():
    model = with_quantized_part(None, dynamic={"input": {2: "height", 3: "width"}})
    shapes = ({0: Dim("batch"), 2: Dim("height", min=2), 3: Dim("width", min=2)},)
    program = torch.export.export(model, (IMAGES,), dynamic_shapes=shapes)
    x = torch.randn(3, 3, 6, 10)
    torch.testing.assert_close(program.module()(x), model(x))


@ACTIVATIONS
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_a_model_with_a_quantized_part_is_quantized_again_and_the_report_says_so(activations, loaded, tmp_path):
    model = with_quantized_part(activations, folder=tmp_path if loaded else None)
    quantized = rw.quantize(model, IMAGES, quantizing(rw.Weights(16), rw.rounding.Nearest(), rewrites=()))
    assert any(has(note, "'0'", "{'0.*': None}") for note in quantized.report.notes)
    with torch.no_grad():
        torch.testing.assert_close(quantized(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-3)


def test_the_override_of_the_note_keeps_the_part_as_it_is():
    model = with_quantized_part(None)
    stage = rw.Quantize(rw.Weights(8), rw.rounding.Nearest(), overrides={"0.*": None})
    quantized = rw.quantize(model, IMAGES, stage)
    assert [layer.name for layer in quantized.report.layers] == ["3"]
    assert len(quantized.report.kept_float) == 2
