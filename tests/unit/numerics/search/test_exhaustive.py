"""Exhaustive search."""

import dataclasses
import math

import torch

from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.exhaustive import Exhaustive
from roundwise.statistics import Gram
from roundwise.testing import best_rounding, tiny_cases


def test_with_few_columns_the_roundings_are_the_best_there_are():
    for case in tiny_cases():
        moments, grid = case.statistic(Gram).fit, case.grid()
        quadratic = Quadratic.of(moments, case.weight, case.layer.bias_rows, free_bias=False)
        codes = Exhaustive().search(quadratic, grid, case.weight)
        fit = torch.arange(case.samples) % 8 != 7
        seen = dataclasses.replace(case, inputs=case.inputs[fit], targets=case.targets[fit], nonlinearity=None)
        _, optimum = best_rounding(seen, grid)
        assert math.isclose(quadratic.loss(grid.dequantize(codes)).sum().item(), optimum, rel_tol=1e-3, abs_tol=1e-6)
