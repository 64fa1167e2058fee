"""AdaRound from second moments: the paper's relaxation, with exact gradients wherever the objective is quadratic.

AdaRound chooses for every weight whether to round it down or up, so that the layer's output changes least. This solver
does the same for a layer with fewer than 50 *positions* for each column of its matrix. From 50 on, or with 2 bits, a
weight may take any code, and scales are fitted to the codes: there this is better on other inputs too, elsewhere not
(benchmarks/RESULTS.md, "When may a weight take any code?"). Both go beyond the paper, as `free_bias` does.

A position is one application of the layer's matrix: one pixel of a convolution's output, one token of a linear layer.
`statistics/gram.py` draws at most 64 of a sample, or more if samples are few. Held-out ones do not count on this page.

The paper relaxes the choice (`numerics/search/relaxation.py`, Eq. 22 to 25) and takes 10,000 steps of Adam on
minibatches of samples. But where no clamp follows the layer, the error of its output is a quadratic function of the
weights, which two matrices of second moments determine (`numerics/quadratic.py`). Its gradient over all positions costs
one small product, and 400 steps are enough. Where a clamp follows (ReLU, ReLU6) a layer of more than 10 columns with
enough samples, the gradient comes from minibatches, as in the paper: 800 steps on a few hundred positions from many
samples, instead of all positions of 32 samples. Other nonlinearities play no part.

The algorithm lowers the objectives of `methods/reconstruction/objectives.py`: Q is the error of the output, S is Q with
a pull to the float weights, L is the error behind the clamp, and M is a quadratic that bounds L with the pull.

     1. Q ← from the second moments of 7 of 8 samples; the others are held out.
     2. S ← Q with the pull, which is stronger where positions are fewer.
     3. codes ← one start or two, by the table below.
     4. After a start on S: every row takes nearest rounding if its Q is smaller. Fit scale and codes, then the bias. If
        no clamp follows and the layer's Q now exceeds that of nearest rounding, it takes that, with its best bias.
     5. Where a clamp follows, repeat from each start, `alternations` times at most, until L falls by less than 0.5 %:
     6.     M ← made at the current outputs (majorisation).
     7.     codes ← coordinate descent on M, for 11 to 32 columns with a tabu search; fit scale, codes and bias.
     8.     Every row keeps the best by L of all that it has had, from every start, and of nearest rounding (all rows
            together, where they share a changed scale). The next repetition starts from the newest codes, not the best.
     9. Nearest rounding is taken if better on held-out samples, with its bias or the best one (where that helps).
    10. Where positions are fewer than 100 for each column, the codes found are improved with all samples: lines 5
        to 8 if a clamp follows; if not, line 7 on S, and every row keeps the better by Q.

"Fit scale and codes": where `fit_scale` is on, alternate between the best scale in closed form and coordinate descent,
in line 4 `alternations` times at most, in lines 7 and 10 once. The starts in line 3 end at a code next to a *centre*:
w, or with `any_code` nearly the minimum of S over real numbers (see `CENTRE_RIDGE`), near which good codes are.
Exhaustive search tries all 2^cols ways to round the centre down or up; relaxation ends at one of them. From there
coordinate descent and the tabu search reach all codes that are allowed.

    columns     no clamp, or fewer than 16 positions per column    clamp, and 16 positions per column or more
    1 to 10     exhaustive search on S                             exhaustive search on S
    11 to 32    relaxation on S, tabu search on S                  the start on the left; and: relaxation on L with pull
    from 33     relaxation on S                                    relaxation on L with pull

After each search on S comes coordinate descent on S, and another one after the tabu search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver, Traits
from roundwise.methods.reconstruction.loop import Alternation
from roundwise.methods.reconstruction.objectives import Candidate, Objectives, as_rounding, best_rows
from roundwise.methods.reconstruction.referee import judge
from roundwise.methods.settings import check_rules, check_types
from roundwise.numerics.clamped import ClampedLoss, Limits
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.exhaustive import Exhaustive
from roundwise.numerics.search.relaxation import Relaxation
from roundwise.numerics.search.tabu import Tabu
from roundwise.statistics import Gram

EXHAUSTIBLE = 10
"""With at most this many columns all roundings are tried. Every column more doubles the time."""

FEW_COLUMNS = 32
"""With at most this many columns, a tabu search follows and both starts are taken. With more, it finds little."""

CENTRE_RIDGE = 0.01
"""The ridge with which the minimum of S is found (w is taken where that fails). With a larger one it is nearer to w."""

FREE_BITS, FREE_PER_COLUMN = 2, 50
"""Any code and fitted scales are the default with at most 2 bits, and with at least 50 positions for each column."""

FULL_STEPS_AT, SKIP_BELOW = 100, 0.1
"""With 100 or more positions for each column the relaxation runs all `iterations`; with fewer, proportionally fewer.
Below 10 % of them it is skipped, because coordinate descent alone is then as good on other inputs."""

MINIBATCH = 256
"""Positions in a minibatch, at least, or the number of columns if that is more. More give steadier, slower steps."""

ENOUGH_FOR_MINIBATCHES = 16
"""With fewer positions for each column, gradients from minibatches do more harm than good: the start is on S. So it is
where `statistics/gram.py` draws more than 64 positions of each of several samples: 16 in all, and some are held out."""

PLENTY = 100
"""With more positions for each column, line 10 is skipped: an eighth more of them would change next to nothing."""

TENURE = 4
"""The tabu search keeps a changed code for `cols` / 4 moves, up to `cols` / 2. With a larger number, for fewer."""


@final
@dataclass(frozen=True)
class GramAdaRound(RoundingSolver[Gram]):
    """Choose a code for every weight, so that the layer's output changes least. The default.

    With `any_code` the code may be any, without it one of the two next to the weight.

    Args:
        iterations: steps of the relaxation on second moments, at most; the relaxation on minibatches, where a ReLU or
            another clamp follows, takes up to twice as many. Layers with 10 columns or fewer have no relaxation.
        learning_rate: of Adam, in units of V.
        regularization: λ of Eq. 25, for an objective in units of a row's mean curvature.
        any_code: True lets each weight have any code; False only the two next to it, as in the paper (Eq. 9). None
            decides for each layer: True with 2 bits; with more bits, True where the samples that are not held out have
            at least 50 positions for each column.
        free_bias: let the layer's bias take up the mean error, where it has one of its own. The weights then only need
            to reproduce how outputs vary.
        fit_scale: fit scales and codes to each other in turn; None is what `any_code` is in the layer. Scales of
            `PerGroup` stay as they are, and so do all scales with `alternations=0`.
        addition_aware: where the layer's output y, and nothing made from it, is added to another branch r that can be
            computed before, aim at y + r − r̂ and so make up for that branch's error too. Worth a try with 2 bits;
            elsewhere labels showed no gain (benchmarks/RESULTS.md, on additions). False, as in the paper.
        alternations: how often lines 6 to 8 are repeated, and scales and codes fitted in line 4, at most. With 0 the
            search lowers S alone and leaves out a clamp that follows, scales are not fitted, and line 10 is left out:
            no code is chosen by the held-out samples, which only decide in line 9.
        tabu_moves_per_column: moves of the tabu search for each of 11 to 32 columns; 0 for none, and for one start.
        shrinkage: pull of the solution towards the float weights, against overfitting few samples. 0 is none; 1 is what
            the number of positions suggests if all were independent. Those of one image are alike, and 10 was best on
            held-out samples. Where the mean of inputs is many times their spread, as behind a sigmoid, 10 keeps nearly
            all weights at nearest rounding: take 0 there.

    Raises:
        RecipeError: a setting is out of range or of the wrong type.

    References:
        Nagel et al., ICML 2020, arXiv:2004.10568, Sections 3.3 and 3.4; Q from second moments: Eq. 19 and 20.
    """

    iterations: int = 400
    learning_rate: float = 0.2
    regularization: float = 1.0
    any_code: bool | None = None
    free_bias: bool = True
    fit_scale: bool | None = None
    addition_aware: bool = False
    alternations: int = 3
    tabu_moves_per_column: int = 10
    shrinkage: float = 10.0
    needs: ClassVar[type] = Gram

    def __post_init__(self) -> None:
        check_types(self)
        check_rules(
            self,
            {
                "iterations must be at least 1": self.iterations >= 1,
                "learning_rate must be positive": self.learning_rate > 0,
                "regularization must not be negative": self.regularization >= 0,
                "alternations must not be negative": self.alternations >= 0,
                "tabu_moves_per_column must not be negative": self.tabu_moves_per_column >= 0,
                "shrinkage must not be negative": self.shrinkage >= 0,
            },
        )

    @property
    def traits(self) -> Traits:
        return Traits(floor_or_ceil=self.any_code is False and not self.fit_scale, addition_aware=self.addition_aware)

    def solve(self, problem: Problem[Gram], generator: torch.Generator) -> Rounding:
        gram, cols = problem.statistics, problem.weight.shape[2]
        any_code = self._is_worth_any_code(problem) if self.any_code is None else self.any_code
        alternation = self._alternation(problem, any_code, generator)

        objectives = self._objectives(problem, "fit")  # lines 1 and 2
        found = self._search(objectives, alternation, any_code)  # lines 3 to 8
        chosen, note = judge(objectives, found)  # line 9
        if chosen is not found:
            return as_rounding(problem, chosen, note)
        if gram.held_out.count and self.alternations and gram.fit.count < PLENTY * cols:  # line 10
            del objectives  # its matrices are as large as those of all samples
            chosen = alternation.run_on_all_samples(self._objectives(problem, "all"), chosen)
        if any_code and self.any_code is None:
            # Scales of `PerGroup` have no closed form, and without alternations no scale is fitted.
            follow = alternation.fit_scale and self.alternations > 0 and problem.grid.scale.shape[-1] == 1
            freedom = "any code was allowed" + (", and scales were fitted to the codes" if follow else "")
            note = "; ".join(filter(None, (freedom, note)))
        return as_rounding(problem, chosen, note)

    def _search(self, objectives: Objectives, alternation: Alternation, any_code: bool) -> Candidate:
        """Lines 3 to 8, with the starts of the table: the best candidate by Q, or by L where a clamp follows."""
        cols, iterations = objectives.problem.weight.shape[2], self._iterations(objectives)
        if objectives.limits is None:
            start, nearest = self._start_on_quadratic(objectives, alternation, any_code), objectives.nearest
            # Rows that share a scale can be worse with a new one.
            worse = objectives.plain_losses(start).sum() > objectives.plain_losses(nearest).sum()
            return objectives.nearest_with_best_bias() if worse else start
        if cols <= EXHAUSTIBLE or not iterations or objectives.plain.count < ENOUGH_FOR_MINIBATCHES * cols:
            return alternation.run(objectives, self._start_on_quadratic(objectives, alternation, any_code)).candidate
        best = alternation.run(objectives, self._start_on_minibatches(objectives, objectives.limits, any_code))
        if alternation.tabu is not None:
            other = alternation.run(objectives, self._start_on_quadratic(objectives, alternation, any_code))
            best = best_rows(best, other)
        return best.candidate

    def _start_on_quadratic(self, objectives: Objectives, alternation: Alternation, any_code: bool) -> Candidate:
        """Lines 3 and 4, lowering S."""
        shrunk, grid = objectives.shrunk, objectives.problem.grid
        centre = self._centre(objectives, any_code)  # [groups, rows, cols]
        if centre.shape[2] <= EXHAUSTIBLE:
            codes = Exhaustive().search(shrunk, grid, centre)
        else:
            codes = self._relaxation(self._iterations(objectives)).search(shrunk, grid, centre).codes
        codes = objectives.no_row_worse_than_nearest(alternation.improve(shrunk, grid, codes))
        return alternation.with_best_scale_and_bias(objectives, shrunk, grid, codes, times=self.alternations)

    def _start_on_minibatches(self, objectives: Objectives, limits: Limits, any_code: bool) -> Candidate:
        """Line 3, lowering L with the pull on minibatches; a free bias moves along."""
        problem, centre = objectives.problem, self._centre(objectives, any_code)
        minibatches = problem.statistics.minibatches(max(MINIBATCH, centre.shape[2]))
        clamped = ClampedLoss(objectives.plain, objectives.strength, problem.bias, limits, minibatches)
        relaxation = self._relaxation(2 * self._iterations(objectives))
        codes, bias = relaxation.search(objectives.shrunk, problem.grid, centre, clamped)
        assert bias is not None
        return Candidate(codes, problem.grid, bias)

    def _objectives(self, problem: Problem[Gram], split: Literal["fit", "all"]) -> Objectives:
        clamped = self.alternations > 0
        return Objectives.of(problem, split, free_bias=self.free_bias, shrinkage=self.shrinkage, clamped=clamped)

    def _alternation(self, problem: Problem[Gram], any_code: bool, generator: torch.Generator) -> Alternation:
        cols = problem.weight.shape[2]
        choices = (Choices.all if any_code else Choices.floor_or_ceil)(problem.grid, problem.weight)
        fit_scale = any_code if self.fit_scale is None else self.fit_scale
        few = self.tabu_moves_per_column > 0 and EXHAUSTIBLE < cols <= FEW_COLUMNS
        tabu = Tabu(self.tabu_moves_per_column * cols, max(1, cols // TENURE)) if few else None
        return Alternation(choices, self.alternations, fit_scale, generator, tabu)

    def _is_worth_any_code(self, problem: Problem[Gram]) -> bool:
        """Whether `any_code=None` is True in this layer."""
        plenty = problem.statistics.fit.count >= FREE_PER_COLUMN * problem.weight.shape[2]
        return plenty or problem.grid.codebook.bits <= FREE_BITS

    def _iterations(self, objectives: Objectives) -> int:
        """Those of the relaxation on S: all with `FULL_STEPS_AT` positions for each column, else fewer or none."""
        share = objectives.plain.count / (FULL_STEPS_AT * objectives.problem.weight.shape[2])
        return round(min(1.0, share) * self.iterations) if share >= SKIP_BELOW else 0

    def _relaxation(self, iterations: int) -> Relaxation:
        return Relaxation(iterations, self.learning_rate, self.regularization)

    def _centre(self, objectives: Objectives, any_code: bool) -> Float[Tensor, "groups rows cols"]:
        """Where the start is: it ends at one of the two codes next to each of these weights."""
        return objectives.shrunk.minimum(CENTRE_RIDGE) if any_code else objectives.problem.weight
