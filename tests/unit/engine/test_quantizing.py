"""The stage `Quantize`: what its report says of a layer whose error is larger than with nearest rounding."""

import math

import pytest
import torch
from torch import nn

import roundwise as rw
from roundwise.engine.quantizing import WORSE_THAN_NEAREST

IMAGES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def layers(rounding, data=IMAGES, activations=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    return rw.quantize(model.eval(), data, rw.Quantize(rounding=rounding, activations=activations)).report.layers


@pytest.mark.parametrize(
    ("rounding", "worse"),
    [(rw.rounding.Ceil(), 3), (rw.rounding.Nearest(), 0), (rw.rounding.GramAdaRound(), 0)],
    ids=["ceil", "nearest", "gram-adaround"],
)
@pytest.mark.parametrize("activations", [None, rw.Activations()], ids=["weights", "activations"])
def test_a_layer_has_a_note_where_its_error_is_larger_than_with_nearest_rounding(rounding, worse, activations):
    found = layers(rounding, activations=activations)
    assert sum(layer.error > 1.001 * layer.error_nearest for layer in found) == worse
    assert sum(layer.note.count(WORSE_THAN_NEAREST) for layer in found) == worse


def test_without_data_no_error_is_compared():
    found = layers(rw.rounding.Ceil(), data=rw.DataFree((3, 6, 6)))
    assert all(math.isnan(layer.error) and WORSE_THAN_NEAREST not in layer.note for layer in found)
