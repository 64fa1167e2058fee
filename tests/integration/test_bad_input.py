"""Bad input: each kind has its own error, which says what was found, why it cannot work, and what to do."""

import tempfile
from collections import namedtuple

import numpy as np
import pytest
import torch
from facts import raises, warns
from recipes import quantizing
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import roundwise as rw

SAMPLES = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(0))
NEAREST = quantizing(rounding=rw.rounding.Nearest())


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()


def changed(change):
    model = net()
    with torch.no_grad():
        change(model)
    return model


def spoilt(value, *where):
    samples = SAMPLES.clone()
    samples[where] = value
    return samples


# ------------------------------------------------------------------------------------------------------- samples

SAMPLES_REFUSED = {
    "none": (SAMPLES[:0], ("DataLoader",)),
    "an empty loader": (DataLoader(TensorDataset(SAMPLES[:0])), ("DataLoader",)),
    "NaN": (spoilt(float("nan"), 3, 0, 1, 2), (3, "NaN", 1, 10)),
    "infinity": (list(spoilt(float("-inf"), 8).split(4)), (8, "infinity", 108, 2)),
    "a wrong shape": (SAMPLES[:, :2], ("float32 [2, 2, 6, 6]", "RuntimeError")),
    "a wrong number of dimensions": (SAMPLES.flatten(1), ("float32 [2, 108]", "RuntimeError")),
    "a wrong dtype": (SAMPLES.double(), ("float64 [2, 3, 6, 6]", "RuntimeError")),
    "integers": ((255 * SAMPLES).to(torch.uint8), ("uint8 [2, 3, 6, 6]", "RuntimeError")),
    "double precision from numpy": (SAMPLES.numpy().astype(np.float64), ("float64 [2, 3, 6, 6]", "RuntimeError")),
    "single samples in a list": (list(SAMPLES), (10, 3, "torch.stack(samples)")),
    "single arrays in a list": (list(SAMPLES.numpy()), (10, 3, "numpy.stack(samples)")),
    "shapes that differ": ([SAMPLES, SAMPLES[..., :5]], (1, "[3, 6, 5]", "[3, 6, 6]")),
    "a path": ("/data/images", ("str", "DataLoader")),
    "a number": (100, ("int", "DataLoader")),
    "a dataset": (TensorDataset(SAMPLES), ("TensorDataset", "DataLoader(dataset, batch_size=32)")),
}


@pytest.mark.parametrize(("data", "facts"), SAMPLES_REFUSED.values(), ids=SAMPLES_REFUSED)
def test_samples_that_cannot_be_used_are_refused(data, facts):
    with raises(rw.CalibrationError, *facts):
        rw.quantize(net(), data, NEAREST)


def test_keys_that_are_not_parameters_are_named_beside_those_that_are():
    class Two(nn.Module):
        def forward(self, left, right):
            return left + right

    with raises(rw.CalibrationError, "'a'", "'b'", "'left'", "'right'"):
        rw.quantize(Two(), [{"a": SAMPLES, "b": SAMPLES}], NEAREST)


# -------------------------------------------------------------------------------------------------------- weights


WEIGHTS_REFUSED = {
    "NaN": (lambda m: m[4].weight[1, 2, 0, 0].fill_(float("nan")), ("'4'", 1, 144, "weights")),
    "infinity": (lambda m: m[6].weight[:2].fill_(float("inf")), ("'6'", 32, 80, "weights")),
    "in a batch-norm": (lambda m: m[1].running_var.fill_(float("nan")), ("1.running_var", 4, "NaN")),
    "negative variance": (lambda m: m[1].running_var[:2].fill_(-1.0), ("1.running_var", 2, 4)),
    "in a bias": (lambda m: m[4].bias.fill_(float("nan")), ("'4'", 4, "biases")),
}


@pytest.mark.parametrize(("change", "facts"), WEIGHTS_REFUSED.values(), ids=WEIGHTS_REFUSED)
def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(change, facts):
    events = []
    with raises(rw.ModelError, *facts):
        rw.quantize(changed(change), SAMPLES, NEAREST, progress=events.append)
    assert len(events) <= 6  # weights are looked at before the run starts


def test_weights_that_are_not_finite_do_not_matter_where_nothing_is_quantized():
    model = changed(lambda m: m[6].weight.fill_(float("inf")))
    recipe = quantizing(rounding=rw.rounding.Nearest(), overrides={"6": None})
    with raises(rw.ModelError, "outputs", "NaN", 0):
        rw.quantize(model, SAMPLES, recipe)


def test_an_activation_that_overflows_float16_is_an_error_that_names_the_layer():
    model = changed(lambda m: m[4].weight.copy_(6e4 * m[4].weight.sign())).half()
    with raises(rw.ModelError, "'4'", "float16", "float32", "bfloat16"):
        rw.quantize(model, SAMPLES.half(), NEAREST)


def test_an_activation_that_overflows_only_when_quantized_is_an_error_that_names_the_layer():
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).half()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.4, 0.4, 0.4]]))
    samples = torch.full((4, 4), 29_000.0).half()  # the sum is 63,800; with weights rounded up it is 65,250 and more
    recipe = quantizing(rw.Weights(bits=3, ranges=rw.ranges.MinMax()), rw.rounding.Ceil())
    with raises(rw.ModelError, "'0'", "float16", "float32", "bfloat16"):
        rw.quantize(model.eval(), samples, recipe)


def test_a_dead_input_channel_and_an_all_zero_weight_are_handled():
    def deaden(model):
        model[0].weight[:, 1].zero_()
        model[4].weight.zero_()
        model[4].bias.zero_()

    samples = SAMPLES.clone()
    samples[:, 2] = 0
    for rounding in (rw.rounding.Nearest(), rw.rounding.Stochastic(), rw.rounding.AdaRound(iterations=5)):
        for granularity in (rw.PerTensor(), rw.PerChannel()):
            model = changed(deaden)
            quantized = rw.quantize(model, samples, quantizing(rw.Weights(granularity=granularity), rounding))
            zero = quantized.report.layers[1]
            assert "zero" in zero.note
            assert zero.error == zero.error_nearest == 0
            assert torch.equal(quantized(samples), model(samples)) or quantized.report.output_error < 0.1


# --------------------------------------------------------------------------------------------------------- models


def test_a_model_in_training_mode_is_quantized_as_it_evaluates_with_a_warning():
    model = net().train()
    with warns(UserWarning, "model.eval()"):
        quantized = rw.quantize(model, SAMPLES, NEAREST)
    assert all(module.training for module in model.modules())
    assert torch.equal(quantized(SAMPLES), quantized(SAMPLES))
    assert torch.equal(quantized(SAMPLES), rw.quantize(net(), SAMPLES, NEAREST)(SAMPLES))


class Unquantizable(nn.Module):
    def forward(self, x):
        return x.relu()


MODELS_REFUSED = {
    "no layer": (lambda: Unquantizable().eval(), rw.ModelError, (3, "linear", "convolution")),
    "no weights in memory": (lambda: net().to("meta"), rw.ModelError, ("0.weight", "meta")),
    "a part elsewhere": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, device="meta")).eval(),
        rw.ModelError,
        ("1.weight", "meta"),
    ),
    "weights without a module": (lambda: net().state_dict(), rw.ModelError, ("OrderedDict", "load_state_dict")),
    "lazy parameters": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), rw.ModelError, ("lazy",)),
    "a name": (lambda: "resnet18", rw.ModelError, ("str", "nn.Module")),
}


@pytest.mark.parametrize(("make", "error", "facts"), MODELS_REFUSED.values(), ids=MODELS_REFUSED)
def test_models_that_cannot_be_quantized_are_refused(make, error, facts):
    with raises(error, *facts):
        rw.quantize(make(), SAMPLES, NEAREST)


# -------------------------------------------------------------------------------------------------------- recipes


def test_bits_out_of_range_are_refused_when_they_are_written_down():
    for bits in (0, 1, 9, 15, 32, -4):
        with raises(rw.RecipeError, f"bits={bits}", 2, 8, 16):
            rw.Weights(bits=bits)


RECIPES_REFUSED = {
    "a name that matches nothing": (
        quantizing(overrides={"44": None}),
        rw.RecipeError,
        ("'44'", 3, "'4'"),
    ),
    "a glob that matches nothing": (
        quantizing(overrides={"features.*": rw.Weights(bits=8)}),
        rw.RecipeError,
        ("features.*", 3, "'0'", "'4'", "'6'"),
    ),
    "nothing left": (
        quantizing(overrides={"*": None}),
        rw.ModelError,
        ("overrides", 3),
    ),
    "a group that does not divide": (
        quantizing(rw.Weights(granularity=rw.PerGroup(5)), rw.rounding.Nearest()),
        rw.RecipeError,
        ("'0'", 27, 5, 3, "--override 0=per-channel", "--override 0=float"),
    ),
    "a group that does not divide the last layer": (
        quantizing(rw.Weights(granularity=rw.PerGroup(9)), rw.rounding.Nearest()),
        rw.RecipeError,
        ("'6'", 16, 9, 1, 3, "--override 6=float"),
    ),
    "a group that could be smaller": (
        quantizing(rw.Weights(granularity=rw.PerGroup(8)), rw.rounding.Nearest(), overrides={"0": None}),
        rw.RecipeError,
        ("'4'", 36, 8, 1, "2, 4", "--override 4=float"),
    ),
    "a dict": ({"bits": 4}, rw.RecipeError, ("dict", "Recipe.from_dict")),
}


@pytest.mark.parametrize(("recipe", "error", "facts"), RECIPES_REFUSED.values(), ids=RECIPES_REFUSED)
def test_recipes_that_do_not_fit_are_refused_before_the_run(recipe, error, facts):
    events = []
    with raises(error, *facts):
        rw.quantize(net(), SAMPLES, recipe, progress=events.append)
    assert len(events) <= 2


def test_a_budget_that_neither_memory_nor_disk_can_keep_is_refused_before_the_run(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100))
    events = []
    recipe = quantizing(rounding=rw.rounding.Nearest(), memory_budget=1000)
    with raises(rw.MemoryBudgetError, "1000 Bytes", "KiB", "100 Bytes", tmp_path, "TMPDIR"):
        rw.quantize(net(), SAMPLES, recipe, progress=events.append)
    assert events == []
    assert list(tmp_path.iterdir()) == []
