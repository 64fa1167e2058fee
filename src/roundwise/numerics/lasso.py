"""The LASSO, solved exactly for every penalty at once, from second moments.

The LASSO explains a target by few of many terms. With one number β_i for each term, it minimises

    ½ βᵀ A β − bᵀ β + λ ‖β‖₁                                                                                         (1)

where A holds the inner products of the terms, and b their inner products with the target. For large λ every β_i is
zero. As λ falls, one term after the other comes in, and β moves along straight lines between these events. So the whole
path can be followed from event to event (Efron et al. call this LARS):

    1. At first no term is active. λ is the largest |b_i|, where the first term comes in.
    2. Let s be the signs of the active β. With A and b of the active terms alone, β = A⁻¹ (b − λ s) as long as the same
       terms are active.
    3. The correlations c = b − A β of all other terms depend on λ linearly too. Find the next smaller λ where one of
       them reaches |c_j| = λ: the term comes in. Or where an active β_i reaches 0: the term goes out.
    4. Repeat with the new active terms, until λ is 0 or as many terms are active as are asked for.

A term that is a linear combination of active ones, such as a copy of one of them, explains nothing that they do not: it
stays out as long as all of them are active.

A minimum of (1) is known by its conditions: c_i = λ s_i for active terms, |c_j| ≤ λ for all others.

References:
    Tibshirani, JRSS B 58, 1996: the LASSO.
    Osborne et al., IMA J. Numer. Anal. 20, 2000, and Efron et al., Annals of Statistics 32, 2004: its path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DEPENDENT = 1e-9
"""A term stays out if active terms explain all but this share of its square: with it, A would be singular. A larger
number keeps more terms out that are nearly linear combinations of others."""

STEPS_PER_TERM = 8
"""The path ends after 8 events for each term, even if λ is not 0 yet: terms that are nearly equal can come in and go
out again and again without changing the solution."""


@final
@dataclass(frozen=True, eq=False)
class LassoPoint:
    """The solution at one event of the path.

    Attributes:
        penalty: λ.
        solution: β.
        active: the terms that are active just below this penalty.
    """

    penalty: float
    solution: Float[Tensor, "terms"]
    active: Bool[Tensor, "terms"]


def lasso_path(
    products: Float[Tensor, "terms terms"], target: Float[Tensor, "terms"], most: int | None = None
) -> Iterator[LassoPoint]:
    """Solutions of (1) at all events, from the largest penalty down to 0. In between, β is linear in λ.

    Args:
        products: A, symmetric, without negative eigenvalues; float64. A term with a diagonal of 0 never comes in.
        target: b.
        most: end the path when more than this many terms are active.

    Example:
        With A = 1, each |β_i| is |b_i| less the penalty, and not below 0.

        >>> path = list(lasso_path(torch.eye(2).double(), torch.tensor([3.0, -1.0]).double()))
        >>> [(point.penalty, point.solution.tolist()) for point in path]
        [(3.0, [0.0, 0.0]), (1.0, [2.0, 0.0]), (0.0, [3.0, -1.0])]
    """
    count = len(target)
    if not count or not float(products.diagonal().max()) > 0:
        return
    target = torch.where(products.diagonal() > 0, target, 0)
    penalty, first = float(target.abs().max()), int(target.abs().argmax())
    signs, solution = torch.zeros_like(target), torch.zeros_like(target)
    signs[first] = target[first].sign()  # of the active terms; 0 for all others
    barred = torch.zeros_like(target, dtype=torch.bool)  # terms that depend on the active ones
    gone: tuple[int, float] | None = None
    for _ in range(STEPS_PER_TERM * count):
        yield LassoPoint(penalty, solution, signs != 0)
        if penalty == 0 or (most is not None and int(signs.count_nonzero()) > most):
            return
        places = signs.nonzero().flatten()
        factor = torch.linalg.cholesky(products[places[:, None], places])
        direction = torch.zeros_like(signs)  # A⁻¹ s, by which β moves while λ falls by 1
        direction[places] = torch.cholesky_solve(signs[places].unsqueeze(1), factor).squeeze(1)
        while True:
            lines = (target - products @ solution, products @ direction), (solution, direction)
            step, term, sign = _next_event(*lines, signs, penalty, gone, barred)
            penalty, solution = penalty - step, solution + step * direction
            if term is None or not sign or not _depends(products, places, factor, term):
                break
            barred[term] = True
        if term is not None:
            gone = None if sign else (term, float(signs[term]))
            if not sign:
                barred = torch.zeros_like(barred)
            signs = signs.clone()
            signs[term] = sign
            solution[term] = 0.0


def _depends(products: Tensor, places: Tensor, factor: Tensor, term: int) -> bool:
    """Whether a term is a linear combination of active ones, but for rounding errors."""
    half = torch.linalg.solve_triangular(factor, products[places, term].unsqueeze(1), upper=False)
    return float(products[term, term] - half.square().sum()) <= DEPENDENT * float(products[term, term])


def _next_event(
    correlation: tuple[Tensor, Tensor],
    solution: tuple[Tensor, Tensor],
    signs: Tensor,
    penalty: float,
    gone: tuple[int, float] | None,
    barred: Bool[Tensor, "terms"],
) -> tuple[float, int | None, float]:
    """How far λ falls until a term comes in or goes out.

    Args:
        correlation: c, and how fast it falls while λ falls by 1.
        solution: β, and how fast it grows.
        signs: of the active terms.
        penalty: λ.
        gone: the term that went out in the last event, and the sign it had. It still has |c| = λ, which is no event.
        barred: terms that must not come in.

    Returns:
        The step, the term, and its new sign: 0 if it goes out. Without an event λ falls to 0, and there is no term.
    """
    (here, falls), (value, grows) = correlation, solution
    inactive = (signs == 0) & ~barred
    upper = torch.where(inactive & (falls < 1), (penalty - here).clamp(min=0) / (1 - falls), torch.inf)
    lower = torch.where(inactive & (falls > -1), (penalty + here).clamp(min=0) / (1 + falls), torch.inf)
    leaving = torch.where(value * grows < 0, -value / grows, torch.inf)
    leaving = torch.where(
        (value == 0) & (signs * grows < 0), 0.0, leaving
    )  # it came in at a tie, and moves the wrong way
    if gone is not None:
        (upper if gone[1] > 0 else lower)[gone[0]] = torch.inf
    steps = torch.stack([leaving, upper, lower])
    kind, term = divmod(int(steps.argmin()), len(signs))
    step = float(steps[kind, term])
    return (step, term, (0.0, 1.0, -1.0)[kind]) if step < penalty else (penalty, None, 0.0)
