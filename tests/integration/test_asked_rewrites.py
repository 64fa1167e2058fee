"""Rewrites that a recipe asks for: what they are held to, what they do for a network, and how they are asked for."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from facts import has, raises
from recipes import quantizing
from thirds import in_thirds
from torch import nn

import roundwise as rw
from roundwise.cli.recipes import RecipeOptions, build_recipe


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[0].weight[:, 3] *= 6  # the outlier
    return model


SAMPLES = torch.randn(16, 8, 6, 6, generator=torch.Generator().manual_seed(1))
PER_TENSOR = rw.Weights(bits=4, granularity=rw.PerTensor(), ranges=rw.ranges.MinMax())


@dataclass(frozen=True)
class Wrong(rw.rewrites.GraphRewrite):
    """Scales a weight, or drops an output's last digits."""

    factor: float
    exact: ClassVar[bool] = True
    measures_moments: ClassVar[bool] = False

    def note(self, graph):
        return ""

    def apply(self, graph):
        graph = graph.copy()
        graph.constants["0.weight"] = graph.constants["0.weight"] * self.factor
        return graph


@dataclass(frozen=True)
class Inexact(Wrong):
    """The same, and says so."""

    exact: ClassVar[bool] = False


def test_a_small_drift_of_an_inexact_rewrite_is_not_charged_to_the_exact_one_after_it():
    model = nn.Sequential(nn.Linear(8, 4, bias=False)).eval()
    allowed = torch.finfo(torch.float32).eps ** 0.5
    almost = Wrong(1 + 0.7 * allowed)
    rewrites = (Inexact(1 + 0.7 * allowed), almost)
    rw.quantize(model, torch.randn(8, 8), quantizing(rounding=rw.rounding.Nearest(), rewrites=rewrites))
    with raises(rw.ModelError, "Wrong"):
        rw.quantize(
            model, torch.randn(8, 8), quantizing(rounding=rw.rounding.Nearest(), rewrites=(Wrong(1 + 1.4 * allowed),))
        )


@pytest.mark.parametrize("factor", [1.01, float("nan"), float("inf")])
def test_a_rewrite_that_changes_outputs_is_named_with_the_difference(factor):
    with raises(rw.ModelError, "Wrong", 0, 0.01 if factor == 1.01 else "nan"):
        rw.quantize(network(), SAMPLES, quantizing(rewrites=(Wrong(factor),)))


def test_rounding_errors_are_no_change():
    rw.quantize(network(), SAMPLES, quantizing(rounding=rw.rounding.Nearest(), rewrites=[Wrong(1 + 1e-6)]))
    half = network().bfloat16()
    recipe = quantizing(rounding=rw.rounding.Nearest(), rewrites=[rw.rewrites.OutlierChannelSplitting(bits=4)])
    assert rw.quantize(half, SAMPLES.bfloat16(), recipe)(SAMPLES.bfloat16()).dtype == torch.bfloat16


def test_a_rewrite_that_changes_what_is_returned_is_named():
    class Shorter(rw.rewrites.GraphRewrite):
        exact, measures_moments = True, False

        def note(self, graph):
            return ""

        def apply(self, graph):
            graph = graph.copy()
            output = next(node for node in graph.operations.nodes if node.op == "output")
            before = output.all_input_nodes[0].all_input_nodes[0]
            output.replace_input_with(output.all_input_nodes[0], before)
            return graph

    with raises(rw.ModelError, "Shorter", "[2, 16, 4]", "[2, 16, 16]"):
        rw.quantize(network(), SAMPLES, quantizing(rewrites=(Shorter(),)))


def test_splitting_an_outlier_makes_a_per_tensor_grid_finer_and_errors_smaller():
    plain, halves, apart = (
        rw.quantize(network(), SAMPLES, quantizing(PER_TENSOR, rw.rounding.Nearest(), rewrites=rewrites)).report.layers[
            0
        ]
        for rewrites in (
            (),
            (rw.rewrites.OutlierChannelSplitting(0.3),),
            (rw.rewrites.OutlierChannelSplitting(0.3, bits=4),),
        )
    )
    assert apart.error < halves.error < plain.error
    assert (plain.shape[1], halves.shape[1]) == (8, 11)


def rewrites_of(methods):
    return rw.Recipe.from_dict({"stages": [{"stage": "rewrite", "methods": methods}]})


def test_rewrites_survive_a_trip_through_toml(tmp_path):
    recipe = quantizing(
        rewrites=(rw.rewrites.OutlierChannelSplitting(0.05, bits=4), rw.rewrites.OutlierChannelSplitting())
    )
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml") == recipe
    short = {"stages": [{"stage": "rewrite", "methods": ["outlier-channel-splitting"]}]}
    assert rw.Recipe.from_dict(short).stage(rw.Rewrite).methods == (rw.rewrites.OutlierChannelSplitting(),)
    assert rw.Recipe().as_dict()["stages"][0] == {"stage": "rewrite", "undo_harmful": True}
    hash(recipe)


@pytest.mark.parametrize("rewrites", [None, (), (rw.rewrites.CrossLayerEqualization(),)], ids=str)
def test_rewrites_left_open_stay_so_in_files_and_are_not_the_same_as_none(rewrites, tmp_path):
    recipe = quantizing(PER_TENSOR, rewrites=rewrites)
    recipe.to_toml(tmp_path / "recipe.toml")
    assert rw.Recipe.from_toml(tmp_path / "recipe.toml").stage(rw.Rewrite).methods == rewrites
    assert build_recipe(RecipeOptions(recipe=tmp_path / "recipe.toml")).stage(rw.Rewrite).methods == rewrites


def test_left_open_they_equalize_per_tensor_and_do_nothing_per_channel():
    def outcome(weights, **rewrites):
        result = rw.quantize(network(), SAMPLES, quantizing(weights, rw.rounding.Nearest(), **rewrites))
        return result.report.output_error, any("cross-layer-equalization" in note for note in result.report.notes)

    per_channel = rw.Weights(bits=PER_TENSOR.bits)
    equalized = rw.rewrites.CrossLayerEqualization()
    assert outcome(PER_TENSOR) == outcome(PER_TENSOR, rewrites=(equalized,))
    assert outcome(PER_TENSOR)[1]
    assert outcome(PER_TENSOR) != outcome(PER_TENSOR, rewrites=())
    assert outcome(per_channel) == outcome(per_channel, rewrites=())
    assert not outcome(per_channel)[1]


def test_left_open_high_biases_are_absorbed_where_activations_are_quantized():
    per_tensor = rw.Quantize(PER_TENSOR, activations=rw.Activations())
    both = rw.rewrites.CrossLayerEqualization(), rw.rewrites.HighBiasAbsorption()
    assert rw.Rewrite().methods_before(per_tensor) == both
    assert rw.Rewrite(()).methods_before(per_tensor) == ()
    assert rw.Rewrite().methods_before(rw.Quantize(activations=rw.Activations())) == ()


def constant_channels(count=1, between=nn.ReLU, *, norm=True):
    """A network with channels that are 1 whatever the input is, and images for it."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
    gamma, beta = torch.ones(8), torch.zeros(8)
    gamma[3 : 3 + count], beta[3 : 3 + count] = 1e-10, 1.0
    with torch.no_grad():
        if norm:
            parts = [first, nn.BatchNorm2d(8)]
            parts[1].weight.copy_(gamma)
            parts[1].bias.copy_(beta)
        else:
            first.weight *= gamma[:, None, None, None]
            first.bias.copy_(beta)
            parts = [first]
    return nn.Sequential(*parts, between(), last).eval(), torch.randn(48, 3, 4, 4)


EQUALIZED = (rw.rewrites.CrossLayerEqualization(),)


@pytest.mark.parametrize(
    ("count", "between", "norm"),
    in_thirds([1, 7], [nn.ReLU, nn.ReLU6, nn.Identity, nn.LeakyReLU], {"batch-norm": True, "samples": False}),
)
def test_a_constant_channel_does_not_set_the_range_of_activations(count, between, norm):
    model, images = constant_channels(count, between, norm=norm)
    recipe = quantizing(rw.Weights(bits=8, granularity=rw.PerTensor()), rw.rounding.Nearest())
    recipe = recipe.with_settings(rw.Quantize, activations=rw.Activations())
    plain, equalized, absorbed = (
        rw.quantize(model, images, recipe.with_settings(rw.Rewrite, methods=methods, undo_harmful=False)).report
        for methods in ((), EQUALIZED, None)
    )
    assert max(report.high for report in equalized.activations) < 100
    assert equalized.output_error < max(0.01, 4 * plain.output_error)
    assert absorbed.output_error < max(0.01, 4 * plain.output_error)


@dataclass(frozen=True)
class Enlarging(rw.rewrites.GraphRewrite):
    """Computes the same, but makes one channel between two layers very large."""

    exact: ClassVar[bool] = True
    measures_moments: ClassVar[bool] = False

    def note(self, graph):
        return "made a channel large"

    def apply(self, graph):
        graph, factor = graph.copy(), torch.ones(8)
        factor[0] = 1e5
        for weight, by in (("0.weight", factor[:, None, None, None]), ("0.bias", factor), ("3.weight", 1 / factor)):
            by = by.reshape(1, 8, 1, 1) if weight == "3.weight" else by
            graph.constants[weight] = graph.constants[weight] * by
        return graph


def test_a_rewrite_that_ruins_the_quantized_network_is_undone_and_the_report_says_so():
    model, images = constant_channels()
    recipe = quantizing(rw.Weights(bits=8), rw.rounding.Nearest(), activations=rw.Activations())
    plain = rw.quantize(model, images, recipe.with_settings(rw.Rewrite, methods=()))
    methods = (*EQUALIZED, Enlarging())
    undone, kept = (
        rw.quantize(model, images, recipe.with_settings(rw.Rewrite, methods=methods, undo_harmful=undo))
        for undo in (True, False)
    )
    assert kept.report.output_error > 0.5 > 0.001 > undone.report.output_error
    assert any(has(note, "Enlarging", "undo_harmful=False") for note in undone.report.notes)
    assert any(has(note, "cross-layer-equalization", 1) for note in undone.report.notes)
    assert not any(has(note, "undo_harmful") for note in kept.report.notes)
    assert torch.equal(
        undone(images), rw.quantize(model, images, recipe.with_settings(rw.Rewrite, methods=EQUALIZED))(images)
    )
    alone = rw.quantize(model, images, recipe.with_settings(rw.Rewrite, methods=(Enlarging(),)))
    assert torch.equal(alone(images), plain(images))
    assert alone.recipe.stage(rw.Rewrite).methods == (Enlarging(),)


def test_a_rewrite_that_changes_the_outputs_too_much_is_undone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 3)).eval()
    samples = torch.randn(40, 4) * 40  # most values are far above 6
    methods = (rw.rewrites.CrossLayerEqualization(relu6="relu"),)
    recipe = quantizing(rw.Weights(bits=8), rw.rounding.Nearest(), rewrites=methods)
    result = rw.quantize(model, samples, recipe)
    assert any(has(note, "cross-layer-equalization", "undo_harmful=False") for note in result.report.notes)
    assert torch.equal(
        result(samples), rw.quantize(model, samples, recipe.with_settings(rw.Rewrite, methods=()))(samples)
    )


def test_without_data_no_rewrite_is_undone_and_a_note_says_so():
    model, _ = constant_channels()
    report = rw.quantize(model, rw.DataFree((3, 4, 4))).report
    assert has(report.stages[0].notes[-1], "data")
    assert len(report.stages[0].notes) == 3


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: quantizing(rewrites=rw.rewrites.OutlierChannelSplitting()), ("methods", "tuple")),
        (lambda: quantizing(rewrites=("outlier-channel-splitting",)), ("methods[0]", "OutlierChannelSplitting()")),
        (lambda: rewrites_of(["ocs"]), ("methods", "'ocs'", "outlier-channel-splitting")),
        (lambda: rewrites_of("ocs"), ("methods", "'ocs'", "list")),
        (lambda: quantizing(rewrites=(Wrong(1.0),)).as_toml(), ("Wrong(factor=1.0)", "TOML")),
        (lambda: rw.rewrites.OutlierChannelSplitting(ratio=0.0), ("OutlierChannelSplitting", "ratio=0.0")),
        (lambda: rw.rewrites.OutlierChannelSplitting(bits=9), ("bits=9",)),
    ],
)
def test_what_no_recipe_can_mean_is_refused(make, facts):
    with raises(rw.RecipeError, *facts):
        make()


def test_a_rewrite_of_ones_own_comes_back_from_plain_data_as_its_words_and_does_not_run():
    back = rw.Recipe.from_dict(quantizing(rewrites=(Wrong(1.0),)).as_dict())
    with raises(rw.RecipeError, "Wrong(factor=1.0)", "with_settings(Rewrite, methods"):
        rw.quantize(network(), SAMPLES, back)


def test_options_ask_for_rewrites_and_corrections_and_change_their_settings(tmp_path):
    name = "outlier-channel-splitting"
    options = RecipeOptions(rewrites=[name], settings=[f"rewrites.{name}.ratio=0.1"], correction="empirical-bias")
    recipe = build_recipe(options)
    assert recipe == quantizing(
        rewrites=(rw.rewrites.OutlierChannelSplitting(0.1),), correction=rw.corrections.EmpiricalBias()
    )
    file = tmp_path / "recipe.toml"
    recipe.to_toml(file)
    assert build_recipe(RecipeOptions(recipe=file, rewrites=[name], correction="empirical-bias")) == recipe
    assert (
        build_recipe(RecipeOptions(recipe=file, settings=[f"rewrites.{name}.bits=4"])).stage(rw.Rewrite).methods[0].bits
        == 4
    )
    assert build_recipe(RecipeOptions(recipe=file, rewrites=["none"], correction="none")) == quantizing(rewrites=())
    with raises(rw.RecipeError, f"--set rewrites.{name}.ratio=0.1", "--rewrite"):
        build_recipe(RecipeOptions(settings=[f"rewrites.{name}.ratio=0.1"]))
