"""Alternate between codes, scale and bias, and the targets for a clamp: lines 5 to 8, and 10, of `GramAdaRound`.

Each of them is found in closed form, or by a search, while the others stay. The targets give the quadratic M, by which
the others are chosen (`objectives.py`). M bounds L from above, but need not touch it. So L is measured after every
alternation, and every row keeps the best candidate that it has had. The next alternation starts from the newest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from roundwise.methods.reconstruction.objectives import Candidate, Objectives, Scored, best_rows
from roundwise.numerics.grid import Grid
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.descent import Descent
from roundwise.numerics.search.tabu import Tabu

PROGRESS = 0.005
"""An alternation that lowers L by less than this share is the last. With a larger share there are fewer of them."""


@final
@dataclass(frozen=True, eq=False)
class Alternation:
    """What alternates in one layer, and how often.

    Attributes:
        choices: the codes that weights may get.
        alternations: how often codes, scale, bias and targets follow each other, at most.
        fit_scale: whether the scales follow the codes.
        generator: for the tabu search.
        tabu: follows coordinate descent where columns are few; None where they are not.
        descent: lowers a quadratic by single codes.
    """

    choices: Choices
    alternations: int
    fit_scale: bool
    generator: torch.Generator
    tabu: Tabu | None = None
    descent: Descent = Descent()

    def run(self, objectives: Objectives, start: Candidate) -> Scored:
        """The best candidate by L on the way from `start`, nearest rounding among them, row by row."""
        current = start
        majorised, (scored, nearest) = objectives.majorise(current, objectives.nearest)
        best = best_rows(scored, nearest)
        for _ in range(self.alternations):
            before = best.losses.sum()
            codes = self.improve(majorised, current.grid, current.codes)
            current = self.with_best_scale_and_bias(objectives, majorised, current.grid, codes, times=1)
            majorised, (scored,) = objectives.majorise(current)
            best = best_rows(best, scored)
            if best.losses.sum() > before * (1 - PROGRESS):
                break
        return best

    def run_on_all_samples(self, objectives: Objectives, found: Candidate) -> Candidate:
        """A candidate that is no worse than the one found, by L where a clamp follows and by Q elsewhere."""
        if objectives.limits is not None:
            return self.run(objectives, found).candidate
        shrunk, before = objectives.shrunk, objectives.with_best_bias(objectives.plain, found.grid, found.codes)
        codes = self.improve(shrunk, before.grid, before.codes)
        after = self.with_best_scale_and_bias(objectives, shrunk, before.grid, codes, times=1)
        scored = (Scored(candidate, objectives.plain_losses(candidate)) for candidate in (before, after))
        return best_rows(*scored).candidate

    def improve(
        self, quadratic: Quadratic, grid: Grid, codes: Int[Tensor, "groups rows cols"]
    ) -> Int[Tensor, "groups rows cols"]:
        """Codes within the choices; of a start within the choices, no row's quadratic is higher."""
        codes = self.descent.search(quadratic, grid, codes, self.choices)
        if self.tabu is None:
            return codes
        codes = self.tabu.search(quadratic, grid, codes, self.choices, self.generator)
        return self.descent.search(quadratic, grid, codes, self.choices)

    def with_best_scale_and_bias(
        self,
        objectives: Objectives,
        quadratic: Quadratic,
        grid: Grid,
        codes: Int[Tensor, "groups rows cols"],
        times: int,
    ) -> Candidate:
        """Fit scale and codes to each other in turn, up to `times` times, by the quadratic; then the bias."""
        for _ in range(times if self.fit_scale else 0):
            grid = quadratic.best_scale(grid, codes)
            before, codes = codes, self.descent.search(quadratic, grid, codes, self.choices)
            if torch.equal(before, codes):
                break
        return objectives.with_best_bias(quadratic, grid, codes)
