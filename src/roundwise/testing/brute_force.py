"""Try every rounding of a tiny layer, to compare solvers with the optimum.

An output channel depends on its own row of weights only, so with an element-wise nonlinearity the rows are
independent problems (Eq. 18): 2^cols roundings each, not 2^(rows · cols).
"""

from __future__ import annotations

import itertools

import torch

from roundwise.methods.interfaces import Rounding
from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.testing.cases import Case

MOST_COLUMNS = 12


def best_rounding(case: Case, grid: Grid) -> tuple[Rounding, float]:
    """The codes with the smallest objective, each the floor or the ceiling of its weight; and that objective.

    Args:
        case: with at most 12 columns and an element-wise nonlinearity, or none.
        grid: the grid of the codes.

    Raises:
        ValueError: the layer has too many columns.
    """
    groups, rows, cols = case.weight.shape
    if cols > MOST_COLUMNS:
        raise ValueError(f"{case}: {cols} columns have 2^{cols} roundings; at most {MOST_COLUMNS} columns are tried.")
    shape = case.weight.shape
    floor = grid.in_codes(case.weight).floor()
    scale = grid.scales(cols).expand(shape)
    zero_point = expand_blocks(grid.zero_point, cols).expand(shape)
    bias = torch.zeros(groups, rows) if case.layer.bias is None else case.layer.bias.reshape(groups, rows)
    inputs = case.layer.unfold(case.inputs.double())  # [groups, cols, positions]
    targets = case.layer.fold_outputs(case.targets.double())  # [groups, rows, positions]

    ups = torch.tensor(list(itertools.product((0, 1), repeat=cols)))  # [2^cols, cols]
    best = torch.empty(shape, dtype=torch.int32)
    total = 0.0
    for row in itertools.product(range(groups), range(rows)):
        codes = grid.clip(floor[row] + ups)
        weights = (codes - zero_point[row]) * scale[row]
        outputs, wanted = weights.double() @ inputs[row[0]] + bias[row], targets[row]
        if case.nonlinearity is not None:
            outputs, wanted = case.nonlinearity(outputs), case.nonlinearity(wanted)
        errors = (outputs - wanted).square().mean(1)
        best[row] = codes[errors.argmin()].to(torch.int32)
        total += float(errors.min())
    return Rounding(best), total
