"""Checks for every rounding solver, on every case. A check takes (solver, case)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from roundwise.methods import answer_checks  # as a module, because `checks_in` takes every name that begins with check_
from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.rounding import Nearest
from roundwise.statistics import Gram, Nothing
from roundwise.testing.cases import Case
from roundwise.testing.requirement import checks_in, require, unchanged


def solve(solver: RoundingSolver[Any], problem: Problem[Any], seed: int = 0) -> Rounding:
    """Solve as the stream does: without gradients, with a generator for this layer alone."""
    with torch.no_grad():
        return solver.solve(problem, torch.Generator().manual_seed(seed))


@functools.cache
def answer(solver: RoundingSolver[Any], case: Case) -> Rounding:
    """The solver's answer on the grid of the case, computed once for all checks.

    Raises:
        RecipeError: it is not an answer that the engine takes.
    """
    problem = case.problem(solver.needs)
    found = solve(solver, problem)
    answer_checks.check_answer(found, problem, solver)
    return found


def check_codes_are_integers_of_the_codebook(solver: RoundingSolver[Any], case: Case) -> None:
    """Codes are int32, shaped like the weights, from `qmin` to `qmax`."""
    codes = answer(solver, case).codes
    require(codes.dtype == torch.int32, f"codes are {codes.dtype}, not int32")
    require(codes.shape == case.weight.shape, f"codes are {codes.shape}, weights {case.weight.shape}")
    low, high = int(codes.min()), int(codes.max())
    within = case.codebook.qmin <= low and high <= case.codebook.qmax
    require(within, f"codes from {low} to {high} leave {case.codebook.qmin} … {case.codebook.qmax}")


def check_what_else_it_chooses_fits_the_layer(solver: RoundingSolver[Any], case: Case) -> None:
    """A grid of the solver's own has the same codebook and granularity, and a bias is shifted only if it is free."""
    problem, rounding = case.problem(solver.needs), answer(solver, case)
    if rounding.grid is not None:
        shapes = rounding.grid.granularity_shape, problem.grid.granularity_shape
        require(shapes[0] == shapes[1], f"the grid has {shapes[0]} scales, not {shapes[1]}")
        require(rounding.grid.codebook == problem.grid.codebook, f"the codebook became {rounding.grid.codebook}")
        sound = bool((rounding.grid.scale > 0).all() and rounding.grid.scale.isfinite().all())
        require(sound, f"scales from {float(rounding.grid.scale.min())} to {float(rounding.grid.scale.max())}")
    if rounding.bias_shift is not None:
        require(rounding.bias_shift.shape == case.weight.shape[:2], f"the shift is {rounding.bias_shift.shape}")
        require(bool(rounding.bias_shift.isfinite().all()), "a shift of the bias is not finite")
    fixed = solve(solver, dataclasses.replace(problem, bias_is_free=False))
    require(fixed.bias_shift is None, "a bias that is not free is shifted")


def check_it_is_not_worse_than_nearest(solver: RoundingSolver[Any], case: Case) -> None:
    """A solver that minimises over second moments is never worse than nearest rounding, over all samples together.

    It must not be worse on the samples it learns from, nor on those it holds out. Its objective contains the
    nonlinearity only if that is a clamp.
    """
    if solver.needs is not Gram:
        return
    grid = case.grid()
    clamped = case.nonlinearity is not None and case.nonlinearity.limits is not None
    roundings = answer(solver, case), answer(Nearest(), case)
    follows = clamped and getattr(solver, "alternations", 0) > 0
    error, nearest = (case.objective(grid, rounding, nonlinearity=follows) for rounding in roundings)
    scale = float(case.targets.double().square().mean())
    require(error <= nearest * (1 + 1e-3) + 1e-9 * scale, f"the error is {error}, of nearest rounding {nearest}")


def check_codes_are_next_to_their_weights(solver: RoundingSolver[Any], case: Case) -> None:
    """If the solver's traits say `floor_or_ceil`, each code is ⌊W/s⌋ or ⌊W/s⌋ + 1, clipped (Eq. 22)."""
    grid = case.grid()
    codes = answer(solver, case).codes
    floor = grid.in_codes(case.weight).floor()
    other = (codes != grid.clip(floor)) & (codes != grid.clip(floor + 1))
    allowed = not solver.traits.floor_or_ceil or not bool(other.any())
    require(
        allowed, f"{int(other.sum())} codes are not next to their weights; is `traits.floor_or_ceil` meant to be False?"
    )


def check_the_generator_decides(solver: RoundingSolver[Any], case: Case) -> None:
    """The same seed gives the same codes, and PyTorch's global random state is not used."""
    before = answer(solver, case).codes
    with unchanged({}):
        again = solve(solver, case.problem(solver.needs)).codes
    require(torch.equal(again, before), f"{int((again != before).sum())} codes differ for the same seed")


def check_batches_make_no_difference(solver: RoundingSolver[Any], case: Case) -> None:
    """The codes do not depend on how the samples are divided into batches."""
    problem = case.problem(solver.needs)
    statistic = case.statistic(solver.needs, batches=(1, case.samples - 1))
    other = dataclasses.replace(problem, statistics=statistic)
    same = torch.equal(answer(solver, case).codes, solve(solver, other).codes)
    require(same, "codes depend on the batches in which the samples came")


def check_arguments_are_left_alone(solver: RoundingSolver[Any], case: Case) -> None:
    """Weights, grid, bias and samples are not changed, and get no gradients."""
    problem = case.problem(solver.needs)
    tensors = {
        "the weights": problem.weight,
        "the scales": problem.grid.scale,
        "the zero points": problem.grid.zero_point,
        "the inputs": case.inputs,
        "the targets": case.targets,
        **({} if case.layer.bias is None else {"the bias": case.layer.bias}),
    }
    with unchanged(tensors):
        solve(solver, problem)


SOLVER_CHECKS: tuple[Callable[[RoundingSolver[Any], Case], None], ...] = checks_in(globals())
"""The checks above; the one below takes all cases together."""


def check_learns_from_the_statistic(solver: RoundingSolver[Any], cases: Sequence[Case]) -> float:
    """A solver that asks for a statistic makes a smaller error than nearest rounding, on average over the cases.

    Returns:
        The mean ratio of the two objectives (Eq. 25), below 1 if the solver is better; 1 for solvers without statistic.
    """
    if solver.needs is Nothing:
        return 1.0
    ratios = []
    for case in cases:
        grid = case.grid()
        nearest = case.objective(grid, solve(Nearest(), case.problem(Nothing, grid)))
        if nearest > 0:
            ratios.append(case.objective(grid, solve(solver, case.problem(solver.needs, grid))) / nearest)
    mean = sum(ratios) / len(ratios)
    require(mean < 1, f"the error is {mean:.3f} of that of nearest rounding, on average over {len(ratios)} cases")
    return mean
