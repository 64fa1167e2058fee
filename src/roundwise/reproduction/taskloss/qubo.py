"""Up or down for all weights of a layer at once, by the task loss.

With d_j = s (q_j − z) − w_j, and q_j one of the two codes next to the weight (Eq. 9), Eq. 13 is a quadratic
unconstrained binary optimization (QUBO):

    min over q   dᵀ H d        (+ 2 gᵀ d, twice Eq. 12, where the first order is not dropped)

Here H couples the rows, unlike the second moments of a layer's inputs. So the layer becomes a matrix of one row: what
solves a row by its output's error (Eq. 20) solves this as it is. It is NP-hard; both ways give a good answer, not
certainly the best, and neither is worse than nearest rounding.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from roundwise.errors import RecipeError
from roundwise.methods.rounding import CrossEntropyMethod
from roundwise.numerics.grid import Grid, expand_blocks
from roundwise.numerics.quadratic import Quadratic
from roundwise.numerics.search.choices import Choices
from roundwise.numerics.search.cross_entropy import CrossEntropy
from roundwise.numerics.search.tabu import Tabu
from roundwise.recipe.checks import check_whole_number
from roundwise.reproduction.taskloss.hessian import TaskHessian

CROSS_ENTROPY = CrossEntropy(iterations=200, samples=2000)
"""The paper's choice; a whole layer takes more samples than a row. It starts from stochastic rounding's chances."""

TABU = Tabu(moves=2000)
"""Single changes, from nearest rounding."""


def solve_qubo(
    task: TaskHessian,
    grid: Grid,
    search: CrossEntropy | Tabu = CROSS_ENTROPY,
    *,
    first_order: bool = False,
    seed: int = 0,
) -> Int[Tensor, "groups rows cols"]:
    """Search on the layer as one row; nearest rounding where that is better.

    Args:
        task: from `task_hessian`.
        grid: what codes mean, such as `task.grid(weights)`.
        search: `CROSS_ENTROPY`, `TABU`, or one of them with other settings.
        first_order: count the gradient too (Eq. 12); the paper drops it, for a converged network.
        seed: of the random draws.

    Returns:
        int32 codes, for `Given`.

    Raises:
        RecipeError: a setting is out of range, or the grid does not fit the layer.

    References:
        Rubinstein, Methodology and Computing in Applied Probability 1(2), 1999; Nagel et al., ICML 2020,
        arXiv:2004.10568, Section 5, Table 2; Glover, Tabu Search, ORSA Journal on Computing 1(3), 1989.
    """
    if isinstance(search, CrossEntropy):
        CrossEntropyMethod(search.iterations, search.samples, search.elite, search.smoothing)  # checks them
    elif isinstance(search, Tabu):
        check_whole_number("moves", search.moves, at_least=1)
        check_whole_number("tenure", search.tenure, at_least=1)
    else:
        raise RecipeError(f"search is {search!r}; it must be a CrossEntropy or a Tabu, such as CROSS_ENTROPY.")
    for what, value, kind in (("task", task, TaskHessian), ("grid", grid, Grid)):
        if not isinstance(value, kind):
            raise RecipeError(f"{what} is a {type(value).__name__}; it must be a {kind.__name__}.")
    check_whole_number("seed", seed)
    weight = task.weight
    try:
        nearest = grid.quantize(weight)
        per_block = grid.scale, grid.zero_point
        expanded = (expand_blocks(part, weight.shape[-1]).expand(weight.shape) for part in per_block)
        scale, zero_point = (part.reshape(1, 1, -1) for part in expanded)
    except RuntimeError as error:
        raise RecipeError(
            f"the grid, with scales {list(grid.scale.shape)}, does not fit layer '{task.layer}', whose matrix is "
            f"{list(weight.shape)}. Take the grid that `TaskHessian.grid` gives."
        ) from error
    row = weight.reshape(1, 1, -1)
    inherited = -task.gradient.float().reshape(row.shape) if first_order else torch.zeros_like(row)
    quadratic = Quadratic(row, task.hessian.float().unsqueeze(0), inherited, row.new_zeros(1, 1))
    one = Grid(scale, zero_point, grid.codebook)
    with torch.no_grad():
        choices, generator = Choices.floor_or_ceil(one, row), torch.Generator().manual_seed(seed)
        if isinstance(search, CrossEntropy):
            codes = search.search(quadratic, one, choices, generator)
        else:
            codes = search.search(quadratic, one, one.quantize(row), choices, generator)
        codes = codes.reshape(weight.shape)
    # The search counts in float32; what it claims is checked in more digits.
    cost, cost_nearest = (task.cost(grid.dequantize(it), first_order=first_order) for it in (codes, nearest))
    return nearest if cost_nearest < cost else codes
