"""Large tables of cases: `make test` runs a third of each, spread over all its columns, and `make slow` the rest."""

import itertools

import pytest

THIRD = 3


def in_thirds(*columns, start=0):
    """Every combination of one entry of each column, as arguments of `pytest.mark.parametrize`.

    `make test` runs a combination where the positions of its entries add up to a multiple of three. So it runs each two
    entries of different columns together, with a third of the entries of every other column.

    Args:
        columns: mappings from names to values, or sequences of values.
        start: 1 or 2 for another third, where several tests have the same column.
    """
    combinations = []
    for entries in itertools.product(*(enumerate(_named(column)) for column in columns)):
        third = (start + sum(position for position, _ in entries)) % THIRD
        combinations.append(
            pytest.param(
                *(value for _, (_, value) in entries),
                marks=[pytest.mark.slow] if third else [],
                id="-".join(name for _, (name, _) in entries),
            )
        )
    return combinations


def _named(column):
    if isinstance(column, dict):
        return column.items()
    return [(getattr(value, "__name__", str(value)), value) for value in column]
