"""Activations: which tensors are quantized, what is learnt about their values, and the ranges read off that."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.engine.rewriting import folded as rewrite
from roundwise.engine.tasks import tasks_of_layers
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.activations import find_activations
from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.numerics.grid import Codebook
from roundwise.numerics.quantizer import Quantizer
from roundwise.statistics import Extremes, Histogram

UNSIGNED = Codebook(8, symmetric=False)


class Model(nn.Module):
    """A forward function with two convolutions and a linear layer to use."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        return self.function(self, x)


def groups_of(function, recipe=None):
    """The operations whose results are quantized, as groups of their kinds."""
    graph = rewrite(TorchExport().graph(Model(function).eval(), (torch.randn(2, 3, 8, 8),), {}))
    tasks = tasks_of_layers(graph, (recipe or quantizing(rounding=rw.rounding.Nearest())).stage(rw.Quantize))
    found = find_activations(graph, {call for task in tasks for call in task.layer.calls})

    def word(node):
        return node.op if node.op == "placeholder" else getattr(node.target, "_opname", node.target.__name__)

    return [[word(node) for node in group.nodes] for group in found]


# -------------------------------------------------------------------------------------------------------- where


def test_a_layers_input_is_quantized_after_the_function_before_it_and_the_networks_output_is_not():
    assert groups_of(lambda m, x: m.b(m.a(x).relu())) == [["placeholder"], ["relu"]]


def test_both_operands_of_an_addition_are_quantized():
    found = groups_of(lambda m, x: m.b((m.a(x) + x.sigmoid()[:, :1]).relu()))
    assert found == [["placeholder"], ["conv2d"], ["sigmoid"], ["relu"]]


def test_numbers_that_are_only_moved_are_quantized_where_they_were_made():
    assert groups_of(lambda m, x: m.c(F.max_pool2d(m.a(x).relu(), 2).flatten(2).transpose(1, 2))) == [
        ["placeholder"],
        ["relu"],
    ]


def test_what_a_concatenation_joins_shares_a_range():
    assert groups_of(lambda m, x: m.b(torch.cat([m.a(x).relu()[:, :1], x], 1))) == [["placeholder", "relu"]]


def test_a_concatenation_that_nobody_reads_as_codes_shares_nothing():
    assert groups_of(lambda m, x: torch.cat([m.a(x).relu(), x], 1)) == [["placeholder"]]


def test_an_average_reads_codes_and_what_it_gives_is_quantized_for_the_next_layer():
    assert groups_of(lambda m, x: m.c(m.a(x).sigmoid().mean((2, 3)))) == [["placeholder"], ["sigmoid"], ["mean"]]


def test_padding_with_another_number_than_zero_makes_new_numbers():
    assert groups_of(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=0.0))) == [["placeholder"], ["conv2d"]]
    assert groups_of(lambda m, x: m.b(F.pad(m.a(x), (1, 1, 1, 1), value=0.3))) != [["placeholder"], ["conv2d"]]


def test_constants_and_numbers_beside_a_tensor_are_no_second_operand():
    assert groups_of(lambda m, x: (m.a(x) * m.c.weight[0, 0] + 3.0).relu()) == [["placeholder"]]


def test_a_mask_that_the_network_makes_for_itself_stays_in_float():
    def masked(m, x):
        y = m.a(x).flatten(2)
        mask = torch.full((4, 4), float("-inf")).triu(1)
        return (y @ y.transpose(1, 2) + mask).softmax(-1) + torch.zeros_like(y)[:, :, :4]

    assert groups_of(masked) == [["placeholder"], ["conv2d"]]


def test_of_several_results_the_one_that_is_read_is_quantized_where_it_was_not_just_moved():
    assert groups_of(lambda m, x: m.c(m.a(x).amax((2, 3)))) == [["placeholder"], ["amax"]]
    found = groups_of(lambda m, x: m.c(m.a(x).flatten(2).sort(-1)[0][:, :, 0]))
    assert found == [["placeholder"], ["getitem"]]
    assert groups_of(lambda m, x: m.c(m.a(x).flatten(2).chunk(2, 2)[0][:, :, 0])) == [["placeholder"], ["conv2d"]]


def test_a_layer_that_stays_in_float_reads_floats():
    recipe = quantizing(rounding=rw.rounding.Nearest(), overrides={"b": None})
    assert groups_of(lambda m, x: m.b(m.a(x).relu()), recipe) == [["placeholder"]]


# ---------------------------------------------------------------------------------------------------- statistics


def filled(kind, *batches):
    statistic = kind()
    for batch in batches:
        statistic.add(torch.as_tensor(batch))
    return statistic


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-3, 50.0), (50.0, 1e-3), (1e-30, 1e30)])
def test_a_histogram_counts_as_numpy_does_whatever_comes_first(scales):
    batches = [torch.randn(1000) * scale for scale in scales]
    batches[0][:100] = 0
    histogram = filled(Histogram, *batches)
    middles, counts = histogram.bins
    values = torch.cat(batches).double().numpy()
    width = float((middles[middles != 0].abs() / 0.5).min()) if scales[0] == scales[1] else None
    assert int(counts.sum()) == 2000
    assert (middles.diff() > 0).all()
    zeros = counts[middles == 0]
    assert int(zeros.sum()) == int((values == 0).sum())
    largest = np.abs(values).max()
    edges = np.concatenate([[-np.inf], (middles[1:] + middles[:-1]).numpy() / 2, [np.inf]])
    assert np.abs(np.histogram(values, edges)[0] - counts.numpy()).sum() <= 0.02 * len(values) or width is None
    assert float(middles.abs().max()) == pytest.approx(largest, rel=2**-11)


def test_extremes_are_kept_batch_by_batch_and_an_empty_batch_leaves_no_trace():
    statistic = filled(Extremes, [1.0, -2.0], torch.empty(0), [[3.0]])
    assert (statistic.lows, statistic.highs) == ([-2.0, 3.0], [1.0, 3.0])
    assert (statistic.low, statistic.high) == (-2.0, 3.0)


def test_a_histogram_of_many_values_draws_from_all_of_them():
    values = torch.zeros(1 << 19)
    values[1::2] = 1.0
    middles, counts = filled(Histogram, values).bins
    assert int(counts.sum()) == 1 << 18
    assert float(counts[middles == 0].sum() / counts.sum()) == pytest.approx(0.5, abs=0.01)


# -------------------------------------------------------------------------------------------------------- ranges


def test_percentiles_are_those_of_the_values():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    low, high = rw.activations.ActivationPercentile(98.0).limits(filled(Histogram, values), UNSIGNED)
    assert low == pytest.approx(float(values.quantile(0.01)), abs=5e-3)
    assert high == pytest.approx(float(values.quantile(0.99)), abs=5e-3)


def test_a_percentile_of_all_is_min_max():
    values = torch.randn(1000)
    limits = rw.activations.ActivationPercentile(100.0).limits(filled(Histogram, values), UNSIGNED)
    assert limits == rw.activations.ActivationMinMax().limits(filled(Extremes, values), UNSIGNED)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_mse_range_is_at_least_as_good_as_min_max_and_better_where_there_are_outliers(bits, symmetric):
    book, generator = Codebook(bits, symmetric), torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator)
    values[0] = 100.0
    histogram = filled(Histogram, values)

    def error(limits):
        return float((Quantizer.spanning(*limits, book).fake_quantize(values) - values).square().sum())

    best = error(rw.activations.ActivationMSE().limits(histogram, book))
    widest = error(rw.activations.ActivationMinMax().limits(histogram, book))
    assert best <= widest
    if bits == 4:
        assert best < 0.9 * widest


def test_a_moving_average_is_what_its_formula_says():
    statistic = filled(Extremes, [-1.0, 2.0], [-3.0, 4.0], [0.0, 10.0])
    low, high = rw.activations.ActivationMovingAverage(momentum=0.5).limits(statistic, UNSIGNED)
    assert (low, high) == (0.5 * (0.5 * -1 + 0.5 * -3) + 0.5 * 0, 0.5 * (0.5 * 2 + 0.5 * 4) + 0.5 * 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rw.activations.ActivationPercentile(0.0),
        lambda: rw.activations.ActivationPercentile(100.5),
        lambda: rw.activations.ActivationMovingAverage(1.0),
        lambda: rw.activations.ActivationMSE(candidates=0),
        lambda: rw.Activations(bits=9),
        lambda: rw.Activations(ranges="mse"),
        lambda: rw.Activations(adapt_rounding=1),
        lambda: quantizing(activations=8),
    ],
)
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(rw.RecipeError):
        make()


@pytest.mark.parametrize("name", ACTIVATION_RANGES)
def test_a_recipe_with_activations_survives_a_file(name, tmp_path):
    recipe = quantizing(activations=rw.Activations(4, True, ACTIVATION_RANGES[name](), adapt_rounding=False))
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    assert rw.Recipe.from_dict(recipe.as_dict()) == recipe


def test_a_range_method_of_ones_own_is_remembered_and_refused_from_a_file():
    @dataclasses.dataclass(frozen=True)
    class Mine(rw.activations.ActivationRanges):
        needs = Extremes

        def limits(self, values, codebook):
            return -1.0, 1.0

    recipe = quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations(ranges=Mine()))
    quantized = rw.quantize(nn.Linear(3, 4).eval(), torch.randn(8, 3), recipe)
    assert quantized.report.activations[0].scale == pytest.approx(2 / 255)
    back = rw.Recipe.from_dict(recipe.as_dict())
    with raises(rw.RecipeError, "activations", "Mine"):
        rw.quantize(nn.Linear(3, 4).eval(), torch.randn(8, 3), back)


# ----------------------------------------------------------------------------------------------------- quantizers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_quantizer_keeps_zero_the_dtype_and_its_limits(dtype):
    quantizer = Quantizer.spanning(-0.7, 1.9, UNSIGNED)
    values = torch.tensor([0.0, -5.0, 5.0, 0.31], dtype=dtype)
    found = quantizer.fake_quantize(values)
    assert found.dtype == dtype
    assert found[0] == 0
    assert found[1:3].float() == pytest.approx([quantizer.low, quantizer.high], rel=1e-2)
    assert abs(float(found[3]) - float(values[3])) <= quantizer.scale / 2 + 1e-2 * (dtype.itemsize < 4)


def test_a_range_beside_zero_is_widened_to_hold_it():
    assert Quantizer.spanning(2.0, 5.1, UNSIGNED).low == 0
    assert Quantizer.spanning(-3.0, -1.0, Codebook(8)).high > 0
