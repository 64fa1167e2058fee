"""Bias correction in the pass: the means are the float network's, layer after layer, in program, report and files."""

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw

COARSE = rw.Weights(bits=2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, padding=1),
        nn.ReLU6(),
        nn.Flatten(2),
        nn.Linear(64, 4),
    ).eval()


def images(count=41):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5


def recipe(correction=rw.corrections.EmpiricalBias(), rounding=rw.rounding.Nearest(), **more):
    return quantizing(COARSE, rounding, correction=correction, batch_size=16, **more)


@torch.no_grad()
def errors_of_means(model, quantized, samples, layers=(0, 2, 5)):
    """For each layer: the largest difference of a channel's mean, in the float and in the quantized network."""
    wanted = dict(zip(layers, recorded(model, samples), strict=True))
    given = dict(zip(layers, recorded(quantized, samples), strict=True))
    return [float((wanted[layer] - given[layer]).abs().max()) for layer in layers]


def recorded(model, samples):
    """Mean output of each channel at every layer, whatever the network is made of."""
    found = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if function in (torch.ops.aten.convolution.default, torch.ops.aten.addmm.default):
                across = [0] if result.dim() == 2 else [0, 2, 3]
                found.append(result.double().mean(across))
            return result

    with Recorder():
        model(samples)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rounding", [rw.rounding.Nearest(), rw.rounding.GramAdaRound()], ids=repr)
def test_every_channels_mean_is_the_float_networks_at_every_layer(rounding):
    model, samples = network(), images()
    plain = rw.quantize(model, samples, recipe(None, rounding))
    corrected = rw.quantize(model, samples, recipe(rounding=rounding))
    *errors, last = errors_of_means(model, plain, samples)
    assert min(errors) > 1e-3
    if rounding == rw.rounding.Nearest():
        assert last > 1e-3
    else:  # so few positions that AdaRound's own bias is that of all samples, and leaves nothing to correct
        assert last < 1e-5
    assert max(errors_of_means(model, corrected, samples)) < 1e-5


def test_the_report_measures_the_corrected_layer_and_nearest_rounding_without():
    model, samples = network(), images()
    plain = rw.quantize(model, samples, recipe(None)).report.layers
    quantized = rw.quantize(model, samples, recipe())
    first = quantized.report.layers[0]
    assert first.error < plain[0].error
    assert first.error_nearest == pytest.approx(plain[0].error)
    with torch.no_grad():
        wanted, given = model(samples), quantized(samples)
    error = float((wanted - given).square().sum() / wanted.square().sum())
    assert quantized.report.layers[-1].error == pytest.approx(error, rel=1e-4)


def test_layers_without_a_bias_of_their_own_stay_and_the_report_says_so():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3, bias=False)
            self.right.bias = self.left.bias

        def forward(self, x):
            return self.last((self.left(x) + self.right(x)).relu())

    layers = rw.quantize(Shared().eval(), torch.randn(8, 6), recipe()).report.layers
    left, right, last = (layer.note for layer in layers)
    assert left == right != last
    assert all("not corrected" in note for note in (left, last))
    assert "no bias" in last
    assert all(layer.note == "" for layer in rw.quantize(network(), images(8), recipe()).report.layers)


@pytest.mark.parametrize("adapt", [True, False])
def test_with_quantized_activations_the_correction_is_made_once(adapt):
    model, samples = network(), images()
    activations = rw.Activations(adapt_rounding=adapt)
    quantized = rw.quantize(model, samples, recipe(activations=activations))
    biases = {name: value for name, value in quantized.state_dict().items() if name.endswith("bias")}
    weights_alone = rw.quantize(model, samples, recipe()).state_dict()
    same = [torch.equal(value, weights_alone[name]) for name, value in biases.items()]
    # Rounded before activations are quantized, biases are those of weights alone; else they answer to what codes leave.
    assert all(same) if not adapt else not any(same)
    if adapt:
        with torch.no_grad():
            difference = (model(samples) - quantized(samples)).mean((0, 1))
        assert difference.abs().max() < 1e-5


def test_a_file_keeps_the_correction(tmp_path):
    quantized = rw.quantize(network(), images(8), recipe())
    quantized.save(tmp_path / "model.rw")
    loaded = rw.load(tmp_path / "model.rw")
    assert loaded.recipe.stage(rw.Quantize).correction == rw.corrections.EmpiricalBias()
    assert torch.equal(loaded(images(3)), quantized(images(3)))


def test_bfloat16_models_are_corrected_as_well_as_their_biases_can():
    model, samples = network().bfloat16(), images().bfloat16()
    plain, corrected = (rw.quantize(model, samples, recipe(c)) for c in (None, rw.corrections.EmpiricalBias()))
    was, now = (errors_of_means(model, quantized, samples) for quantized in (plain, corrected))
    assert all(after < before / 4 for before, after in zip(was, now, strict=True))


class Wrong(rw.corrections.Correction):
    """Shifts by something of another shape."""

    needs = rw.rounding.Nearest.needs

    def shift(self, weight, bias, statistics):
        return torch.zeros(3)

    def note(self, statistics):
        return ""


def test_a_correction_that_does_not_fit_the_layer_is_named():
    with raises(rw.RecipeError, "Wrong", "'0'", "[3]", "[1, 8]"):
        rw.quantize(network(), images(8), recipe(Wrong()))
