"""Mistakes of methods of one's own: each is an error that names the method and the layer, and no model is changed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from facts import raises
from torch import nn

import roundwise as rw
from roundwise.methods.interfaces import Correction, RangeEstimator, Rounding, RoundingSolver, Traits
from roundwise.numerics.grid import Codebook, Grid
from roundwise.statistics import ExpectedMeans, Nothing

SAMPLES = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4)).eval()


@dataclass(frozen=True)
class Mine(RoundingSolver[Nothing]):
    """Nearest rounding, and then what `answer` makes of it."""

    answer: object
    needs: ClassVar[type] = Nothing
    traits: ClassVar[Traits] = Traits()

    def solve(self, problem, generator):
        return self.answer(problem, problem.grid.quantize(problem.weight))


def rounding(codes, grid=None, bias_shift=None, note=""):
    """A Rounding without the checks of shapes that only tests make."""
    made = object.__new__(Rounding)
    for name, value in {"codes": codes, "grid": grid, "bias_shift": bias_shift, "note": note}.items():
        object.__setattr__(made, name, value)
    return made


def solving(answer):
    return rw.quantize(model(), SAMPLES, rw.Quantize(rounding=Mine(answer)))


@pytest.mark.parametrize(
    ("answer", "facts"),
    {
        "no Rounding": (lambda _, codes: codes, ("Tensor", "Rounding")),
        "codes of numpy": (lambda _, codes: rounding(codes.numpy()), ("codes", "numpy.ndarray", "Tensor")),
        "a list of codes": (lambda _, codes: rounding(codes.tolist()), ("codes", "list", "Tensor")),
        "codes that are true or false": (lambda _, codes: rounding(codes > 0), ("torch.bool", "[1, 4, 8]", -8, 7)),
        "complex codes": (lambda _, codes: rounding(codes.to(torch.complex64)), ("codes", "complex64")),
        "float codes": (lambda _, codes: rounding(codes.float()), ("torch.float32", -8, 7)),
        "no codes": (lambda _, codes: rounding(codes[:, :0]), ("[1, 0, 8]", "[1, 4, 8]")),
        "a scale for a grid": (lambda p, codes: rounding(codes, p.grid.scale), ("grid", "Tensor", "Grid")),
        "a number for a shift": (lambda _, codes: rounding(codes, bias_shift=0.5), ("bias_shift", "float")),
        "a shift of numpy": (lambda _, codes: rounding(codes, bias_shift=np.zeros((1, 4))), ("bias_shift", "ndarray")),
        "a number for a note": (lambda _, codes: rounding(codes, note=3), ("note", "int", "str")),
    }.values(),
)
def test_an_answer_of_a_wrong_kind_is_an_error_that_names_solver_and_layer(answer, facts):
    with raises(rw.RecipeError, "Mine(", "'0'", "solve", *facts):
        solving(answer)


@pytest.mark.parametrize("part", ["weight", "bias", "grid.scale", "grid.zero_point"])
@pytest.mark.parametrize("inference", [False, True])
def test_a_solver_that_changes_its_problem_leaves_the_model_as_it_was(part, inference):
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def spoil(problem, codes):
        tensor = problem
        for name in part.split("."):
            tensor = getattr(tensor, name)
        tensor.zero_()
        return Rounding(codes)

    with torch.inference_mode(inference), raises(rw.RecipeError, "Mine(", "'0'", part, f"{part}.clone()"):
        rw.quantize(net, SAMPLES, rw.Quantize(rounding=Mine(spoil)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@dataclass(frozen=True)
class Ranges(RangeEstimator[Nothing]):
    """What `answer` makes of the weights."""

    answer: object
    needs: ClassVar[type] = Nothing

    def estimate(self, weight, codebook, granularity, statistics, layer):
        return self.answer(weight, codebook)


@pytest.mark.parametrize(
    ("answer", "facts"),
    {
        "a scale": (lambda weight, _: weight.abs().amax() / 7, ("Tensor", "Grid", "estimate")),
        "a grid of other bits": (
            lambda weight, _: Grid(torch.ones(1, 4, 1), torch.zeros(1, 4, 1, dtype=torch.int32), Codebook(3)),
            ("bits=3", "bits=4", "estimate"),
        ),
        "weights changed in place": (lambda weight, _: weight.zero_(), ("weight", "weight.clone()")),
    }.values(),
)
def test_a_mistake_of_a_range_estimator_is_an_error_that_names_it_and_the_layer(answer, facts):
    net = model()
    with raises(rw.RecipeError, "Ranges(", "'0'", *facts):
        rw.quantize(net, SAMPLES, rw.Quantize(rw.Weights(ranges=Ranges(answer)), rw.rounding.Nearest()))
    assert net[0].weight.abs().sum() > 0


@dataclass(frozen=True)
class Shifts(Correction[Nothing]):
    """A given shift."""

    answer: object
    needs: ClassVar[type] = Nothing

    def shift(self, weight, bias, statistics):
        return self.answer

    def note(self, statistics):
        return ""


@pytest.mark.parametrize("answer", [0.5, np.zeros((1, 4)), torch.zeros(4), torch.full((1, 4), torch.nan)])
def test_a_mistake_of_a_correction_is_an_error_that_names_it_and_the_layer(answer):
    with raises(rw.RecipeError, "Shifts(", "'0'", "[1, 4]", "shift"):
        rw.quantize(model(), SAMPLES, rw.Quantize(rounding=rw.rounding.Nearest(), correction=Shifts(answer)))


class Bare(RoundingSolver[Nothing]):
    """A solver that forgot to say what it needs."""

    traits = Traits()

    def solve(self, problem, generator):
        return Rounding(problem.grid.quantize(problem.weight))


class NeedsInt(Bare):
    needs = int


class NeedsObject(Bare):
    needs = Nothing()


class OtherTraits(Bare):
    needs = ExpectedMeans
    traits = {"floor_or_ceil": True}  # noqa: RUF012  # the mistake


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (Bare, ("needs=None", "Statistic", "ClassVar[type] = Nothing")),
        (NeedsInt, ("needs=<class 'int'>", "Statistic")),
        (NeedsObject, ("needs", "Statistic")),
        (OtherTraits, ("traits", "Traits()")),
    ],
)
def test_a_solver_that_declares_something_else_is_refused_where_it_is_written_down(kind, facts):
    with raises(rw.RecipeError, kind.__name__, *facts):
        rw.Quantize(rounding=kind())
    with raises(rw.RecipeError, kind.__name__, *facts):
        rw.Weights(rounding=kind())
