"""The knapsack against trying all choices."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roundwise.numerics.knapsack import knapsack

numbers = st.one_of(st.integers(0, 12).map(float), st.floats(0, 10))
items = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=5)


@given(items, st.floats(0, 1))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_no_choice_within_the_budget_has_a_smaller_error(options, share):
    costs, errors = [[c for c, _ in one] for one in options], [[e for _, e in one] for one in options]
    least, most = sum(map(min, costs)), sum(map(max, costs))
    budget = least + share * (most - least)
    chosen = knapsack(costs, errors, budget)

    def total(table, choice):
        return sum(row[number] for row, number in zip(table, choice, strict=True))

    choices = itertools.product(*(range(len(one)) for one in options))
    wanted = min(total(errors, choice) for choice in choices if total(costs, choice) <= budget)
    assert total(costs, chosen) <= budget * (1 + 1e-9) + 1e-9
    assert total(errors, chosen) <= wanted * (1 + 1e-8) + 1e-12


def test_a_budget_below_the_cheapest_choice_is_an_error():
    with pytest.raises(ValueError, match="3"):
        knapsack([[2.0, 1.0], [2.0]], [[0.0, 1.0], [0.0]], 2.9)


def test_many_items_take_no_time():
    count, sizes = 200, 30
    costs = [[100.0 + item, *(float(size * 3 + item % 7) for size in range(sizes))] for item in range(count)]
    errors = [[0.0, *((item + 1) / (size + 1) ** (1 + item % 3) for size in range(sizes))] for item in range(count)]
    chosen = knapsack(costs, errors, 0.4 * sum(row[0] for row in costs))
    assert sum(row[number] for row, number in zip(costs, chosen, strict=True)) <= 0.4 * sum(row[0] for row in costs)
