"""A solver may shift a layer's bias and choose its scale: both must reach the program, the files and the report."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch
from facts import raises
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise.statistics import Nothing

COARSE = rw.Weights(bits=2)


class Twice(nn.Module):
    """One layer used twice, two layers with one bias, and an ordinary one."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.right.bias = self.left.bias
        self.without = nn.Linear(6, 6, bias=False)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        x = self.twice(self.twice(x).relu()).relu()
        x = self.left(x) + self.right(x)
        return self.last(self.without(x).relu())


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()


def images(count=40):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.5


def test_biases_and_scales_differ_from_those_of_nearest_rounding():
    model, samples = network(), images(100)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nearest = rw.quantize(model, samples, quantizing(COARSE, rw.rounding.Nearest())).state_dict()
    chosen = rw.quantize(model, samples, quantizing(COARSE)).state_dict()
    for layer in ("0", "2", "4"):
        (bias,) = (name for name in chosen if name.replace("_", ".").endswith(f"{layer}.bias"))
        (scale,) = (name for name in chosen if f"{layer}" in name and name.endswith("scale"))
        assert not torch.equal(chosen[bias], nearest[bias])
        if layer != "0":  # before the ReLU6, another scale is kept only where it helps codes that followed that
            assert not torch.equal(chosen[scale], nearest[scale])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("granularity", [rw.PerTensor(), rw.PerChannel(), rw.PerGroup(3)], ids=repr)
def test_the_program_computes_what_the_pass_did(granularity):
    model, samples = network(), images()
    overrides = {"4": None} if isinstance(granularity, rw.PerGroup) else {}  # its 8 columns are no groups of 3
    recipe = quantizing(rw.Weights(bits=2, granularity=granularity), overrides=overrides)
    quantized = rw.quantize(model, samples, recipe)
    with torch.no_grad():
        wanted, given = model(samples), quantized(samples)
    error = float((wanted - given).square().sum() / wanted.square().sum())
    assert error == pytest.approx(quantized.report.output_error, rel=1e-3)
    last = quantized.report.layers[-1]
    if last.name == "4":
        assert error == pytest.approx(last.error, rel=1e-3)


def test_a_file_and_an_export_carry_them(tmp_path):
    quantized = rw.quantize(network(), images(), quantizing(COARSE))
    quantized.save(tmp_path / "model.rw")
    assert torch.equal(rw.load(tmp_path / "model.rw")(images(5)), quantized(images(5)))
    rw.export(quantized, tmp_path / "model.onnx")  # compares with ONNX Runtime, and raises if they differ


def test_a_bias_that_something_else_reads_stays_as_it_is():
    model = Twice().eval()
    samples = torch.randn(64, 6) + 0.5
    chosen = rw.quantize(model, samples, quantizing(COARSE)).state_dict()
    biases = {name: value for name, value in chosen.items() if name.endswith("bias")}
    moved = {
        owner
        for owner in ("twice", "left", "right", "last")
        for name, value in biases.items()
        if owner in name and not torch.equal(value, getattr(model, owner).bias)
    }
    assert moved == {"last"}
    assert not any("without" in name for name in biases)


def test_bfloat16_models_get_biases_of_their_own_dtype():
    quantized = rw.quantize(network().bfloat16(), images().bfloat16(), quantizing(COARSE))
    dtypes = {value.dtype for name, value in quantized.state_dict().items() if name.endswith("bias")}
    assert dtypes == {torch.bfloat16}
    assert quantized(images(2).bfloat16()).dtype == torch.bfloat16


def test_a_shift_is_added_to_every_group_of_a_grouped_layer():
    groups = nn.Conv2d(4, 6, 1, groups=2)
    model = nn.Sequential(groups, nn.Flatten()).eval()
    samples = torch.randn(64, 4, 2, 2) + 1
    quantized = rw.quantize(model, samples, quantizing(COARSE))
    with torch.no_grad():
        error = (quantized(samples) - model(samples)).reshape(64, 6, 4)
    # On the samples to learn from, the mean error is gone, for each output channel.
    fit = torch.arange(64) % 8 != 7
    assert error[fit].mean((0, 2)).abs().max() < 1e-4


@final
@dataclass(frozen=True)
class Wrong(rw.rounding.RoundingSolver[Nothing]):
    """Rounds to nearest, and changes what `act` says."""

    act: Callable[[rw.rounding.Problem], dict]
    needs: ClassVar[type] = Nothing
    traits: ClassVar[rw.rounding.Traits] = rw.rounding.Traits()

    def solve(self, problem, generator):
        return rw.rounding.Rounding(problem.grid.quantize(problem.weight), **self.act(problem))


def scaled(problem, factor):
    return dataclasses.replace(problem.grid, scale=problem.grid.scale * factor)


@pytest.mark.parametrize(
    ("act", "facts"),
    [
        (lambda problem: {"grid": rw.Grid.symmetric(problem.grid.scale, bits=3)}, ("grid", "bits=3", "bits=2")),
        (lambda problem: {"grid": rw.Grid.symmetric(torch.ones(1, 1, 1), bits=2)}, ("grid", "(1, 1, 1)", "(1, 8, 1)")),
        (lambda problem: {"grid": scaled(problem, -1)}, ("grid", "scales")),
        (lambda problem: {"grid": scaled(problem, float("nan"))}, ("grid", "scales")),
        (lambda problem: {"bias_shift": torch.full(problem.weight.shape[:2], torch.inf)}, ("bias", "[1, 8]")),
    ],
)
def test_a_solver_that_changes_what_does_not_fit_the_layer_is_named(act, facts):
    with raises(rw.RecipeError, "Wrong", "'0'", *facts):
        rw.quantize(network(), images(), quantizing(COARSE, Wrong(act)))


def test_a_solver_that_shifts_a_bias_which_is_not_free_is_named():
    act = Wrong(lambda problem: {"bias_shift": torch.zeros(problem.weight.shape[:2])})
    with raises(rw.RecipeError, "Wrong", "'twice'", "bias"):
        rw.quantize(Twice().eval(), torch.randn(8, 6), quantizing(COARSE, act))
