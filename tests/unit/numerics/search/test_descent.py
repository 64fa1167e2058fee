"""Coordinate descent: no step raises the objective, and where it ends no single change helps."""

import itertools

import pytest
import torch
from small_layers import linear_case, moments, scale_of, whole_problem

from roundwise.methods.ranges import MinMax
from roundwise.numerics.grid import Codebook, Grid, PerTensor
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.descent import Descent
from roundwise.statistics import Nothing
from roundwise.testing import cases, tiny_cases

CASES = pytest.mark.parametrize("case", cases(), ids=str)
SOME = pytest.mark.parametrize("case", tiny_cases(), ids=str)


@CASES
@pytest.mark.parametrize("any_code", [False, True])
def test_no_sweep_of_coordinate_descent_raises_the_objective_of_any_row(case, any_code):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=True)
    grid = case.grid()
    choices = Choices.all(grid, case.weight) if any_code else Choices.floor_or_ceil(grid, case.weight)
    codes = grid.quantize(case.weight)
    loss = quadratic.loss(grid.dequantize(codes))
    for _ in range(4):
        codes = Descent(sweeps=1).search(quadratic, grid, codes, choices)
        assert (codes >= choices.low).all()
        assert (codes <= choices.high).all()
        now = quadratic.loss(grid.dequantize(codes))
        assert (now <= loss + 1e-5 * scale_of(case)).all()
        loss = now


@SOME
def test_where_coordinate_descent_ends_no_single_change_helps(case):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=False)
    grid = case.grid()
    codes = Descent().search(quadratic, grid, grid.quantize(case.weight), Choices.all(grid, case.weight))
    loss = quadratic.loss(grid.dequantize(codes))
    for column, step in itertools.product(range(codes.shape[-1]), (-1, 1)):
        other = codes.clone()
        other[..., column] = grid.clip(other[..., column] + step)
        assert (quadratic.loss(grid.dequantize(other)) >= loss * (1 - 1e-4) - 1e-7).all()


@pytest.mark.parametrize("size", [7, 64])
def test_coordinate_descent_over_several_slices_keeps_count_of_its_slopes(size, monkeypatch):
    monkeypatch.setattr("roundwise.numerics.search.descent.SLICE", size)
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 200, 90, generator=generator) + torch.randn(2, 200, 1, generator=generator)
    weight = torch.randn(2, 6, 90, generator=generator)
    inherited = 0.1 * torch.randn(2, 6, 90, generator=generator)
    quadratic = Quadratic(weight, root.mT @ root / 200, inherited, torch.zeros(2, 6))
    grid = Grid.symmetric(torch.full((1, 1, 1), 0.4), bits=3)
    codes = Descent().search(quadratic, grid, grid.quantize(weight), Choices.all(grid, weight))
    loss = quadratic.loss(grid.dequantize(codes))
    assert (loss < quadratic.loss(grid.fake_quantize(weight))).all()
    for column, step in itertools.product(range(90), (-1, 1)):
        other = codes.clone()
        other[..., column] = grid.clip(other[..., column] + step)
        assert (quadratic.loss(grid.dequantize(other)) >= loss - 1e-4).all()


def test_every_row_descends_to_its_end_however_soon_others_have_reached_theirs():
    generator = torch.Generator().manual_seed(1)
    weight, inherited = torch.randn(2, 1, 60, 12, generator=generator).unbind()
    hessian = whole_problem(linear_case()).statistics.fit.second / 256
    quadratic = Quadratic(weight, hessian, inherited, torch.zeros(1, 60))
    grid = MinMax().estimate(weight, Codebook(3), PerTensor(), Nothing(), "")
    choices, start = Choices.all(grid, weight), grid.quantize(weight)
    ends = [Descent(sweeps).search(quadratic, grid, start, choices) for sweeps in range(1, 50)]
    last = [
        next(n for n, codes in enumerate(ends) if torch.equal(codes[:, row], ends[-1][:, row])) for row in range(60)
    ]
    assert len(set(last)) > 3  # they do not all end at once
    slope = (grid.dequantize(ends[-1]) - weight) @ hessian - inherited
    gain = grid.scale.square() * hessian.diagonal(dim1=1, dim2=2).unsqueeze(1) - 2 * grid.scale * slope.abs()
    inside = torch.where(slope > 0, ends[-1] > choices.low, ends[-1] < choices.high)
    assert (gain[inside] > -1e-4).all()
    losses = torch.stack([quadratic.loss(grid.dequantize(codes)) for codes in ends])
    assert (losses.diff(dim=0) <= 1e-4).all()
