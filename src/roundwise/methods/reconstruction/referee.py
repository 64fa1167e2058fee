"""The held-out check: a rounding that was chosen on some samples must not be worse than nearest rounding on others.

Every eighth sample is held out (`statistics/gram.py`). On these samples three candidates are compared, by the error of
the layer's output behind the clamp that follows it, if one does:

    1. the rounding that the solver found,
    2. nearest rounding, with the bias as it is,
    3. where the bias is free: nearest rounding, with the bias that takes up its mean error. That bias is fitted before
       the clamp; rows in which it does harm behind the clamp, on the samples to choose by, keep the bias as it is.

If 2 or 3 is better than 1, the layer keeps it, and the report says so.
"""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import torch

from roundwise.methods.reconstruction.objectives import Candidate, Objectives, best_rows
from roundwise.numerics.threads import one_thread

ROUNDING_ERROR = 1e-6
"""Errors that differ by a smaller share than this count as equal; with a larger one, nearest rounding is kept less."""

ROUNDING_ERROR_OF_TARGETS = 1e-9
"""The same as a share of the targets' energy, which matters where both errors are next to nothing."""


class Verdict(NamedTuple):
    """The candidate to keep, and a sentence for the report; empty where the solver's own stands."""

    candidate: Candidate
    note: str


def judge(objectives: Objectives, found: Candidate) -> Verdict:
    """The found candidate, or nearest rounding where that is better on the held-out samples."""
    nearest, held_out = objectives.nearest, objectives.problem.statistics.held_out
    if not held_out.count:
        return Verdict(found, "not checked on held-out samples: there is a single sample")
    rivals = (nearest, objectives.nearest_with_best_bias()) if objectives.free_bias else (nearest,)
    error, *errors = held_out_errors(objectives, found, *rivals)
    limit = error - ROUNDING_ERROR * error - ROUNDING_ERROR_OF_TARGETS * float(held_out.energy.sum())
    least, rival = min(zip(errors, rivals, strict=True), key=itemgetter(0))
    if rival is not nearest and least < limit and objectives.limits is not None:
        _, (scored, scored_nearest) = objectives.majorise(rival, nearest)
        mended = best_rows(scored, scored_nearest).candidate
        (error_mended,) = held_out_errors(objectives, mended)
        least, rival = min((errors[0], nearest), (error_mended, mended), key=itemgetter(0))
    if not least < limit:  # also where an error is NaN
        return Verdict(found, "")
    biased = "" if rival is nearest else ", with a bias that takes up its mean error"
    ratio, found_codes = f"{least / error:.4g}", "that of the codes that were found"
    how = f"smaller by {1 - least / error:.1e} of {found_codes}" if ratio == "1" else f"{ratio} times {found_codes}"
    return Verdict(rival, f"keeps nearest rounding{biased}: its error on held-out samples is {how}")


def held_out_errors(objectives: Objectives, *candidates: Candidate) -> list[float]:
    """Squared errors of the outputs on the held-out samples, behind the clamp if one follows the layer."""
    nonlinearity = objectives.problem.nonlinearity
    limits = None if nonlinearity is None else nonlinearity.limits
    low, high = limits or (-torch.inf, torch.inf)
    totals = [0.0] * len(candidates)
    for pairs in objectives.problem.statistics.positions("held-out"):
        wanted = pairs.targets.clamp(low, high)
        for index, candidate in enumerate(candidates):
            squares = candidate.outputs(pairs).clamp_(low, high).sub_(wanted).square_()
            with one_thread():
                totals[index] += float(squares.sum())
    return totals
