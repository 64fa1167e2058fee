"""Bad input: each kind has its own error, which says what was found, why it cannot work, and what to do."""

import tempfile
from collections import namedtuple

import numpy as np
import pytest
import torch
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
    "none": (SAMPLES[:0], "there are no calibration samples: the data is empty.*A few hundred samples are usual"),
    "an empty loader": (DataLoader(TensorDataset(SAMPLES[:0])), "there are no calibration samples"),
    "NaN": (spoilt(float("nan"), 3, 0, 1, 2), "calibration sample 3 contains NaN.*remove or repair"),
    "infinity": (list(spoilt(float("-inf"), 8).split(4)), "calibration sample 8 contains infinity.*batch 2"),
    "a wrong shape": (SAMPLES[:, :2], r"does not run on the calibration samples.*torch.float32 \[2, 2, 6, 6\]"),
    "a wrong number of dimensions": (SAMPLES.flatten(1), r"does not run on the calibration samples.*\[2, 108\]"),
    "a wrong dtype": (SAMPLES.double(), r"does not run on the calibration samples.*torch.float64 \[2, 3, 6, 6\]"),
    "integers": ((255 * SAMPLES).to(torch.uint8), "does not run on the calibration samples.*torch.uint8"),
    "double precision from numpy": (SAMPLES.numpy().astype(np.float64), "torch.float64"),
    "shapes that differ": (
        [SAMPLES, SAMPLES[..., :5]],
        r"batch 1 have shape \[3, 6, 5\].*Bring all samples to one shape",
    ),
    "a path": ("/data/images", "of type str are not understood.*The command line reads files and folders"),
    "a number": (100, "of type int are not understood.*Give a tensor, an array"),
    "a dataset": (TensorDataset(SAMPLES), "Wrap it: `DataLoader"),
}


@pytest.mark.parametrize(("data", "message"), SAMPLES_REFUSED.values(), ids=SAMPLES_REFUSED)
def test_samples_that_cannot_be_used_are_refused(data, message):
    with pytest.raises(rw.CalibrationError, match=f"(?s){message}"):
        rw.quantize(net(), data, NEAREST)


def test_keys_that_are_not_parameters_are_named_beside_those_that_are():
    class Two(nn.Module):
        def forward(self, left, right):
            return left + right

    with pytest.raises(rw.CalibrationError, match="keys 'a', 'b', but the model's forward requires 'left', 'right'"):
        rw.quantize(Two(), [{"a": SAMPLES, "b": SAMPLES}], NEAREST)


# -------------------------------------------------------------------------------------------------------- weights


WEIGHTS_REFUSED = {
    "NaN": (lambda m: m[4].weight[1, 2, 0, 0].fill_(float("nan")), "layer '4' has 1 weights that are NaN or infinite"),
    "infinity": (lambda m: m[6].weight[:2].fill_(float("inf")), "layer '6' has 32 weights that are NaN .* of 80"),
    "in a batch-norm": (
        lambda m: m[1].running_var.fill_(float("nan")),
        "'1.running_var', the running_var of a batch-norm, has 4 numbers of 4 that are NaN or infinite",
    ),
    "negative variance": (
        lambda m: m[1].running_var[:2].fill_(-1.0),
        "'1.running_var', the running_var of a batch-norm, has 2 negative numbers of 4",
    ),
    "in a bias": (
        lambda m: m[4].bias.fill_(float("nan")),
        "layer '4' has 4 biases that are NaN or infinite, of 4",
    ),
}


@pytest.mark.parametrize(("change", "message"), WEIGHTS_REFUSED.values(), ids=WEIGHTS_REFUSED)
def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(change, message):
    events = []
    with pytest.raises(rw.ModelError, match=f"(?s){message}"):
        rw.quantize(changed(change), SAMPLES, NEAREST, progress=events.append)
    assert len(events) <= 6  # weights are looked at before the run starts


def test_weights_that_are_not_finite_do_not_matter_where_nothing_is_quantized():
    model = changed(lambda m: m[6].weight.fill_(float("inf")))
    recipe = quantizing(rounding=rw.rounding.Nearest(), overrides={"6": None})
    with pytest.raises(rw.ModelError, match="outputs contain NaN for samples in batch 0"):
        rw.quantize(model, SAMPLES, recipe)


def test_an_activation_that_overflows_float16_is_an_error_that_names_the_layer():
    model = changed(lambda m: m[4].weight.copy_(6e4 * m[4].weight.sign())).half()
    with pytest.raises(rw.ModelError, match=r"(?s)at layer '4' .*in torch.float16.*in float32 or bfloat16"):
        rw.quantize(model, SAMPLES.half(), NEAREST)


def test_an_activation_that_overflows_only_when_quantized_is_an_error_that_names_the_layer():
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).half()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.4, 0.4, 0.4]]))
    samples = torch.full((4, 4), 29_000.0).half()  # the sum is 63,800; with weights rounded up it is 65,250 and more
    recipe = quantizing(rw.Weights(bits=3, ranges=rw.ranges.MinMax()), rw.rounding.Ceil())
    with pytest.raises(rw.ModelError, match="layer '0' gives finite values in the float network, but NaN or infinite"):
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
            assert zero.note == "all weights are zero"
            assert zero.error == zero.error_nearest == 0
            assert torch.equal(quantized(samples), model(samples)) or quantized.report.output_error < 0.1


# --------------------------------------------------------------------------------------------------------- models


def test_a_model_in_training_mode_is_quantized_as_it_evaluates_with_a_warning():
    model = net().train()
    with pytest.warns(UserWarning, match="in training mode; its evaluation behaviour is quantized.*dropout off"):
        quantized = rw.quantize(model, SAMPLES, NEAREST)
    assert all(module.training for module in model.modules())
    assert torch.equal(quantized(SAMPLES), quantized(SAMPLES))
    assert torch.equal(quantized(SAMPLES), rw.quantize(net(), SAMPLES, NEAREST)(SAMPLES))


class Unquantizable(nn.Module):
    def forward(self, x):
        return x.relu()


MODELS_REFUSED = {
    "no layer": (
        lambda: Unquantizable().eval(),
        rw.ModelError,
        "no layer to quantize: among its . operations is no linear layer",
    ),
    "no weights in memory": (
        lambda: net().to("meta"),
        rw.ModelError,
        "'0.weight' is on the 'meta' device.*Load the model's weights first",
    ),
    "a part elsewhere": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, device="meta")).eval(),
        rw.ModelError,
        "'1.weight' is on the 'meta' device",
    ),
    "weights without a module": (
        lambda: net().state_dict(),
        rw.ModelError,
        "the model is a OrderedDict; it must be an",
    ),
    "a traced model": (
        lambda: torch.jit.trace(net(), SAMPLES[:2]),
        rw.ModelError,
        "the model is a TopLevelTracedModule, compiled by TorchScript, .* Give the nn.Module that was traced",
    ),
    "a scripted model": (
        lambda: torch.jit.script(net()),
        rw.ModelError,
        "the model is a RecursiveScriptModule, compiled by TorchScript",
    ),
    "a scripted part": (
        lambda: nn.Sequential(torch.jit.script(nn.Conv2d(3, 4, 3))).eval(),
        rw.CaptureError,
        r"Way out: quantize a part that holds weights, .*get_submodule\('0'\)",
    ),
    "lazy parameters": (
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
        rw.ModelError,
        "the model has lazy parameters, .* Call it once",
    ),
    "a name": (lambda: "resnet18", rw.ModelError, "the model is a str; it must be an nn.Module"),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("make", "error", "message"), MODELS_REFUSED.values(), ids=MODELS_REFUSED)
def test_models_that_cannot_be_quantized_are_refused(make, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        rw.quantize(make(), SAMPLES, NEAREST)


# -------------------------------------------------------------------------------------------------------- recipes


def test_bits_out_of_range_are_refused_when_they_are_written_down():
    for bits in (0, 1, 9, 15, 32, -4):
        with pytest.raises(rw.RecipeError, match=f"bits={bits}: a code can have 2 to 8 bits, or 16"):
            rw.Weights(bits=bits)


RECIPES_REFUSED = {
    "a name that matches nothing": (
        quantizing(overrides={"44": None}),
        rw.RecipeError,
        "'44' matches none of the 3 layers. The nearest names are '4'",
    ),
    "a glob that matches nothing": (
        quantizing(overrides={"features.*": rw.Weights(bits=8)}),
        rw.RecipeError,
        "'features.*' matches none of the 3 layers.*'0', '4', '6'",
    ),
    "nothing left": (
        quantizing(overrides={"*": None}),
        rw.ModelError,
        "keep all 3 layers in float: nothing is left to quantize",
    ),
    "a group that does not divide": (
        quantizing(rw.Weights(granularity=rw.PerGroup(5)), rw.rounding.Nearest()),
        rw.RecipeError,
        "layer '0' has 27 columns.*groups of 5.*3 of 3 layers do not.*No size fits them all.*--override 0=float",
    ),
    "a group that does not divide the last layer": (
        quantizing(rw.Weights(granularity=rw.PerGroup(9)), rw.rounding.Nearest()),
        rw.RecipeError,
        r"layer '6' has 16 columns.*groups of 9 \(1 of 3 layers do not.*No size fits them all",
    ),
    "a group that could be smaller": (
        quantizing(rw.Weights(granularity=rw.PerGroup(8)), rw.rounding.Nearest(), overrides={"0": None}),
        rw.RecipeError,
        r"layer '4' has 36 columns.*groups of 8 \(1 of 2 layers do not.*Choose a size among 2, 4, or",
    ),
    "a dict": ({"bits": 4}, rw.RecipeError, "the recipe is a dict; it must be a Recipe.*Recipe.from_dict"),
}


@pytest.mark.parametrize(("recipe", "error", "message"), RECIPES_REFUSED.values(), ids=RECIPES_REFUSED)
def test_recipes_that_do_not_fit_are_refused_before_the_run(recipe, error, message):
    events = []
    with pytest.raises(error, match=f"(?s){message}"):
        rw.quantize(net(), SAMPLES, recipe, progress=events.append)
    assert len(events) <= 2


def test_a_budget_that_neither_memory_nor_disk_can_keep_is_refused_before_the_run(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100))
    events = []
    recipe = quantizing(rounding=rw.rounding.Nearest(), memory_budget=1000)
    with pytest.raises(rw.MemoryBudgetError, match=r"1000 Bytes by .*KiB, but .* only 100 Bytes free"):
        rw.quantize(net(), SAMPLES, recipe, progress=events.append)
    assert events == []
    assert list(tmp_path.iterdir()) == []
