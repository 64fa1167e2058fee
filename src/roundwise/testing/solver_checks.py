"""What every rounding solver must hold to, on every case. A check takes (solver, case)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from roundwise.methods.interfaces import Problem, Rounding, RoundingSolver
from roundwise.methods.rounding import Nearest
from roundwise.statistics import Gram, Nothing
from roundwise.testing.cases import Case
from roundwise.testing.requirement import require


def solve(solver: RoundingSolver[Any], problem: Problem[Any], seed: int = 0) -> Rounding:
    """Solve as the stream does: without gradients, with a generator of the layer's own."""
    with torch.no_grad():
        return solver.solve(problem, torch.Generator().manual_seed(seed))


@functools.cache
def answer(solver: RoundingSolver[Any], case: Case) -> Rounding:
    """The solver's answer on the case's own grid: several checks look at it, and one that it is the same every time."""
    return solve(solver, case.problem(solver.needs))


def check_codes_are_integers_of_the_codebook(solver: RoundingSolver[Any], case: Case) -> None:
    """Codes are int32, shaped like the weights, from `qmin` to `qmax`."""
    codes = answer(solver, case).codes
    require(codes.dtype == torch.int32, f"codes are {codes.dtype}, not int32")
    require(codes.shape == case.weight.shape, f"codes are {codes.shape}, weights {case.weight.shape}")
    low, high = int(codes.min()), int(codes.max())
    within = case.codebook.qmin <= low and high <= case.codebook.qmax
    require(within, f"codes from {low} to {high} leave {case.codebook.qmin} … {case.codebook.qmax}")


def check_what_else_it_chooses_fits_the_layer(solver: RoundingSolver[Any], case: Case) -> None:
    """A grid of its own is of the kind that was asked for, and a bias is only shifted where it is free."""
    problem, rounding = case.problem(solver.needs), answer(solver, case)
    if rounding.grid is not None:
        shapes = rounding.grid.granularity_shape, problem.grid.granularity_shape
        require(shapes[0] == shapes[1], f"the grid has {shapes[0]} scales, not {shapes[1]}")
        require(rounding.grid.codebook == problem.grid.codebook, f"the codebook became {rounding.grid.codebook}")
        sound = bool((rounding.grid.scale > 0).all() and rounding.grid.scale.isfinite().all())
        require(sound, f"scales from {float(rounding.grid.scale.min())} to {float(rounding.grid.scale.max())}")
    if rounding.bias_shift is not None:
        require(rounding.bias_shift.shape == case.weight.shape[:2], f"the shift is {rounding.bias_shift.shape}")
        require(bool(rounding.bias_shift.isfinite().all()), "the bias is shifted by what is not finite")
    fixed = solve(solver, dataclasses.replace(problem, bias_is_free=False))
    require(fixed.bias_shift is None, "a bias is shifted that is not free")


def check_it_is_not_worse_than_nearest(solver: RoundingSolver[Any], case: Case) -> None:
    """A solver that minimises over second moments is never worse than nearest rounding, on all samples together.

    It is held to this on the samples it learns from and on those it holds out, so it holds for both together. What
    the nonlinearity is worth is in its objective only if that is a clamp.
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
    """Where the solver's traits say `floor_or_ceil`, each code is ⌊W/s⌋ or ⌊W/s⌋ + 1, clipped (Eq. 22)."""
    grid = case.grid()
    codes = answer(solver, case).codes
    floor = grid.position(case.weight).floor()
    other = (codes != grid.clip(floor)) & (codes != grid.clip(floor + 1))
    allowed = not solver.traits.floor_or_ceil or not bool(other.any())
    require(
        allowed, f"{int(other.sum())} codes are not next to their weights; is `traits.floor_or_ceil` meant to be False?"
    )


def check_the_generator_decides(solver: RoundingSolver[Any], case: Case) -> None:
    """The same seed gives the same codes, and PyTorch's own random state is left alone."""
    state = torch.get_rng_state()
    again, before = solve(solver, case.problem(solver.needs)).codes, answer(solver, case).codes
    require(torch.equal(again, before), f"{int((again != before).sum())} codes differ for the same seed")
    require(torch.equal(state, torch.get_rng_state()), "random numbers were drawn from PyTorch's global state")


def check_batches_make_no_difference(solver: RoundingSolver[Any], case: Case) -> None:
    """The same codes in whatever batches the samples came."""
    problem = case.problem(solver.needs)
    statistic = case.statistic(solver.needs, batches=(1, case.samples - 1))
    other = dataclasses.replace(problem, statistics=statistic)
    same = torch.equal(answer(solver, case).codes, solve(solver, other).codes)
    require(same, "codes depend on the batches in which the samples came")


def check_arguments_are_left_alone(solver: RoundingSolver[Any], case: Case) -> None:
    """Weights, grid, bias and samples are what they were, and have no gradients."""
    problem = case.problem(solver.needs)
    tensors = {
        "the weights": problem.weight,
        "the scales": problem.grid.scale,
        "the zero points": problem.grid.zero_point,
        "the inputs": case.inputs,
        "the targets": case.targets,
        **({} if case.layer.bias is None else {"the bias": case.layer.bias}),
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    solve(solver, problem)
    for name, tensor in tensors.items():
        require(torch.equal(tensor, before[name]), f"{name} were changed")
        require(not tensor.requires_grad and tensor.grad is None, f"{name} got a gradient")


SOLVER_CHECKS: tuple[Callable[[RoundingSolver[Any], Case], None], ...] = (
    check_codes_are_integers_of_the_codebook,
    check_what_else_it_chooses_fits_the_layer,
    check_it_is_not_worse_than_nearest,
    check_codes_are_next_to_their_weights,
    check_the_generator_decides,
    check_batches_make_no_difference,
    check_arguments_are_left_alone,
)


def check_learns_from_the_statistic(solver: RoundingSolver[Any], cases: Sequence[Case]) -> float:
    """A solver that asks for a statistic makes a smaller error than nearest rounding, on average over the cases.

    Returns:
        The mean ratio of the two objectives (Eq. 25): below 1 is better. 1 for solvers that ask for nothing.
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
