"""Tabu search: keep changing the best single code, even uphill, and forbid undoing it for a while.

The objective of each row changes by a_j + 2 s δ g_j when code j moves by δ = ±1, with a_j = s² H_jj and g = d H − c. At
every step each row makes the move that raises its objective least (or lowers it most) among those that are not
tabu; a column that was changed is tabu for a random number of steps, unless the move would give the best objective
that the row ever had. So the search climbs out of the local minima where coordinate descent stops.

It starts from coordinate descent. What it still gains from the end of AdaRound's relaxation is what that leaves on the
table (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from roundwise.gramspace import WORK, Choices, Freedom, Quadratic, Slope, descend, solve
from roundwise.grid import Grid, expand_blocks
from roundwise.problem import Problem, Rounding, RoundingSolver, check_rules, check_types
from roundwise.statistics import Gram


@final
@dataclass(frozen=True)
class TabuSearch(RoundingSolver[Gram]):
    """Change one code at a time, uphill too, and remember what was best for the output before any activation function.

    Args:
        iterations: moves of every row.
        tenure: how many steps a changed code is left alone, at least; at most twice as many.
        any_code: True lets each weight have any code; False only the two next to it.
        free_bias: let the layer's bias take up the mean error, where it has one of its own.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Glover, Tabu Search, ORSA Journal on Computing 1(3), 1989.
    """

    iterations: int = 1000
    tenure: int = 10
    any_code: bool = True
    free_bias: bool = False
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(self, {"iterations and tenure must be at least 1": min(self.iterations, self.tenure) >= 1})

    @property
    def floor_or_ceil(self) -> bool:
        return not self.any_code

    def work(self, rows_per_sample: int, samples: int) -> float:
        return WORK * rows_per_sample * samples

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        def search(quadratic: Quadratic, grid: Grid, choices: Choices, _: Slope | None) -> Tensor:
            start = descend(quadratic, grid, grid.quantize(quadratic.weight), choices)
            return self.walk(quadratic, grid, start, choices, generator)

        return solve(problem, search, Freedom(self.any_code, self.free_bias))

    def walk(
        self, quadratic: Quadratic, grid: Grid, start: Tensor, choices: Choices, generator: torch.Generator
    ) -> Tensor:
        """The best codes met on a walk from `start`, row by row."""
        hessian, codes, cols = quadratic.hessian, start.float(), start.shape[-1]
        scale = grid.steps(cols).expand(codes.shape)
        matrix = (codes - expand_blocks(grid.zero_point, cols)) * scale
        slope = (matrix - quadratic.weight) @ hessian - quadratic.pull
        curvature = scale.square() * hessian.diagonal(dim1=1, dim2=2).unsqueeze(1)
        best, least = codes.clone(), torch.zeros_like(quadratic.constant)
        change, free_at = torch.zeros_like(least), torch.zeros_like(codes, dtype=torch.int32)
        group = torch.arange(codes.shape[0], device=codes.device).unsqueeze(1)
        for step in range(self.iterations):
            first = 2 * scale * slope
            up = torch.where(codes < choices.high, curvature + first, math.inf)
            down = torch.where(codes > choices.low, curvature - first, math.inf)
            gain = torch.minimum(up, down)
            allowed = (free_at <= step) | (change.unsqueeze(-1) + gain < least.unsqueeze(-1))
            rise, column = torch.where(allowed, gain, math.inf).min(-1)
            place = column.unsqueeze(-1)
            direction = torch.where(up.gather(-1, place) <= down.gather(-1, place), 1.0, -1.0)
            direction *= rise.isfinite().unsqueeze(-1)  # a row where nothing may move stays
            codes.scatter_add_(-1, place, direction)
            slope += direction * scale.gather(-1, place) * hessian[group, column]
            change += torch.where(rise.isfinite(), rise, 0)
            tenure = self.tenure + torch.randint(self.tenure + 1, place.shape, generator=generator)
            free_at.scatter_(-1, place, (step + 1 + tenure).to(free_at))
            better = change < least
            best = torch.where(better.unsqueeze(-1), codes, best)
            least = torch.where(better, change, least)
        return best
