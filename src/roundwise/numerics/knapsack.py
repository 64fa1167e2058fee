"""Choose one option for each item so that the total error is smallest within a budget: the multiple-choice knapsack.

Exact, and fast for the hundreds of layers and tens of options of a network:

1. Drop options that cost more than another one and are no better.
2. Relax the problem: if parts of options could be chosen, the best choice would take improvements in the order of error
   saved per cost. This gives a lower bound on the error for any budget, for the items from each one on; and, where only
   whole improvements are taken that fit, a choice to begin with.
3. Go through the items. A *state* is a total cost and a total error that some choice for the items so far has. Drop
   states that another one beats in both, and states that cannot become better than the choice in hand, by the bound.
4. The best state at the end is the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]

TOLERANCE = 1e-12
"""Share of the largest sum within which two sums count as equal, so that rounding errors drop no optimal state."""


class Relaxed(NamedTuple):
    """The relaxed problem for some items: the smallest error for each cost, linear between these points."""

    costs: Floats
    errors: Floats

    def error(self, budget: Floats) -> Floats:
        """A lower bound on the error within each budget; infinite where nothing fits."""
        bound: Floats = np.where(budget < self.costs[0], np.inf, np.interp(budget, self.costs, self.errors))
        return bound


def knapsack(costs: Sequence[Sequence[float]], errors: Sequence[Sequence[float]], budget: float) -> list[int]:
    """The option of each item with the smallest sum of errors, among choices whose sum of costs is within the budget.

    Args:
        costs: of the options of each item, 0 or more.
        errors: of the same options.
        budget: the largest sum of costs.

    Raises:
        ValueError: no choice is within the budget.
    """
    items = [(np.asarray(c, np.float64), np.asarray(e, np.float64)) for c, e in zip(costs, errors, strict=True)]
    options = [_undominated(cost, error) for cost, error in items]
    useful = [(cost[known], error[known]) for (cost, error), known in zip(items, options, strict=True)]
    bounds = _relaxed_from_each(useful)
    budget += TOLERANCE * budget
    if budget < bounds[0].costs[0]:
        raise ValueError(f"the cheapest choice costs {bounds[0].costs[0]:g}, more than the budget {budget:g}")
    best = _greedy_error(useful, budget) + TOLERANCE * bounds[0].errors[0]
    total_cost, total_error = np.zeros(1), np.zeros(1)
    history: list[tuple[Whole, Whole]] = []
    for (cost, error), rest in zip(useful, bounds[1:], strict=True):
        new_cost, new_error = (total_cost[:, None] + cost).ravel(), (total_error[:, None] + error).ravel()
        promising = np.flatnonzero(new_error + rest.error(budget - new_cost) <= best)
        promising = promising[np.lexsort((new_error[promising], new_cost[promising]))]
        lowest = np.minimum.accumulate(new_error[promising])
        kept = promising[np.r_[True, new_error[promising][1:] < lowest[:-1]]]
        history.append((kept // len(cost), kept % len(cost)))
        total_cost, total_error = new_cost[kept], new_error[kept]
    state, chosen = int(total_error.argmin()), []
    for (parents, taken), known in zip(reversed(history), reversed(options), strict=True):
        chosen.append(int(known[taken[state]]))
        state = int(parents[state])
    return chosen[::-1]


def _undominated(cost: Floats, error: Floats) -> Whole:
    """The options, by rising cost, each with a smaller error than all cheaper ones."""
    order = np.lexsort((error, cost))
    lowest = np.minimum.accumulate(error[order])
    kept: Whole = order[np.r_[True, error[order][1:] < lowest[:-1]]]
    return kept


def _hull(cost: Floats, error: Floats) -> list[int]:
    """The options on the lower convex hull: steps between them save less and less error per cost."""
    hull: list[int] = []
    for place in range(len(cost)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (error[a] - error[b]) * (cost[place] - cost[a]) > (error[a] - error[place]) * (cost[b] - cost[a]):
                break
            hull.pop()
        hull.append(place)
    return hull


class _Step(NamedTuple):
    """An improvement of one item: to which option, what it costs more, and the error that it saves."""

    rate: float
    cost: float
    saved: float
    item: int
    option: int


def _steps(items: Sequence[tuple[Floats, Floats]]) -> list[_Step]:
    """The improvements of all items, in the order of error saved per cost."""
    steps = []
    for number, (cost, error) in enumerate(items):
        for a, b in itertools.pairwise(_hull(cost, error)):
            more, saved = float(cost[b] - cost[a]), float(error[a] - error[b])
            steps.append(_Step(saved / more, more, saved, number, b))
    return sorted(steps, key=lambda step: -step.rate)


def _relaxed_from_each(items: Sequence[tuple[Floats, Floats]]) -> list[Relaxed]:
    """The relaxed problem for the items from each one on, and for no items at the end."""
    relaxed = []
    for start in range(len(items) + 1):
        rest = items[start:]
        steps = _steps(rest)
        costs = np.cumsum([sum(float(cost[0]) for cost, _ in rest), *(step.cost for step in steps)])
        errors = np.cumsum([sum(float(error[0]) for _, error in rest), *(-step.saved for step in steps)])
        relaxed.append(Relaxed(costs, errors))
    return relaxed


def _greedy_error(items: Sequence[tuple[Floats, Floats]], budget: float) -> float:
    """The error of a good choice: whole improvements in order, as long as they fit."""
    left = budget - sum(float(cost[0]) for cost, _ in items)
    chosen, stopped = [0] * len(items), set[int]()
    for step in _steps(items):
        if step.item in stopped or step.cost > left:
            stopped.add(step.item)
        else:
            left, chosen[step.item] = left - step.cost, step.option
    return sum(float(error[option]) for (_, error), option in zip(items, chosen, strict=True))
