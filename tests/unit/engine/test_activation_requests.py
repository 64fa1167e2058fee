"""Which requests about activations a run refuses, and which values."""

import torch
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw

SAMPLES = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def recipe(**settings):
    return quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations(), **settings)


def test_activations_of_one_stage_agree_on_what_weights_are_rounded_for():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    other = rw.Activations(adapt_rounding=not rw.Activations().adapt_rounding)
    with raises(rw.RecipeError, "adapt_rounding", "True", "False"):
        rw.quantize(model, SAMPLES, recipe(overrides={"2": other}))


class Reciprocal(nn.Module):
    """Infinite values between layers, and finite outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)
        nn.init.constant_(self.last.weight, 0.5)

    def forward(self, x):
        return self.last(1 / self.first(x).relu().square()).tanh()


def test_a_layer_that_reads_infinite_values_is_named():
    with raises(rw.ModelError, "'last'", "infinite"):
        rw.quantize(Reciprocal().eval(), SAMPLES, recipe())
