"""Tabu search over codes."""

import pytest
import torch
from small_layers import linear_case, moments, scale_of, whole_problem

from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.descent import Descent
from roundwise.numerics.search.exhaustive import Exhaustive
from roundwise.numerics.search.tabu import Tabu
from roundwise.testing import tiny_cases

SOME = pytest.mark.parametrize("case", tiny_cases(), ids=str)


@SOME
@pytest.mark.parametrize("any_code", [False, True])
def test_a_tabu_search_makes_no_row_worse_and_stays_within_its_choices(case, any_code):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=True)
    grid = case.grid()
    choices = Choices.all(grid, case.weight) if any_code else Choices.floor_or_ceil(grid, case.weight)
    start = Descent().search(quadratic, grid, grid.quantize(case.weight), choices)
    codes = Tabu(moves=100, tenure=2).search(quadratic, grid, start, choices, torch.Generator().manual_seed(0))
    assert (codes >= choices.low).all()
    assert (codes <= choices.high).all()
    before, after = (quadratic.loss(grid.dequantize(it)) for it in (start, codes))
    assert (after <= before + 1e-5 * scale_of(case)).all()


@SOME
def test_a_tabu_search_finds_the_best_rounding_of_a_tiny_layer(case):
    quadratic = Quadratic.of(moments(case), case.weight, case.layer.bias_rows, free_bias=False)
    grid = case.grid()
    choices = Choices.floor_or_ceil(grid, case.weight)
    start = Descent().search(quadratic, grid, grid.quantize(case.weight), choices)
    codes = Tabu().search(quadratic, grid, start, choices, torch.Generator().manual_seed(0))
    best = quadratic.loss(grid.dequantize(Exhaustive().search(quadratic, grid, case.weight))).sum()
    assert quadratic.loss(grid.dequantize(codes)).sum() <= best * 1.02 + 1e-6


def test_in_a_tabu_search_a_row_that_may_not_move_stays():
    case = linear_case()
    quadratic = Quadratic.of(whole_problem(case).statistics.fit, case.weight, case.layer.bias_rows, free_bias=False)
    grid = case.grid()
    codes = grid.quantize(case.weight).float()
    free = torch.tensor([False, True, False, True, False])[:, None]
    choices = Choices(codes - free.float(), codes + free.float())
    found = Tabu(moves=50, tenure=2).search(quadratic, grid, codes, choices, torch.Generator().manual_seed(0))
    moved = (found != codes).any(-1)
    assert moved.any()
    assert not moved[0, ~free.flatten()].any()
