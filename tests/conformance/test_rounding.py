"""Every solver of the table through every check, on every case. A new solver needs no line here."""

import pytest
from thirds import in_thirds

from roundwise.methods.interfaces import estimated_work
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.testing import (
    SETTINGS_CHECKS,
    SOLVER_CHECKS,
    cases,
    check_learns_from_the_statistic,
    quick,
    tiny_cases,
)

SOLVERS = pytest.mark.parametrize("kind", ROUNDING_SOLVERS.values(), ids=ROUNDING_SOLVERS)


@pytest.mark.parametrize(("case", "kind", "check"), in_thirds(cases(), ROUNDING_SOLVERS, SOLVER_CHECKS))
def test_a_solver_holds_to(check, case, kind):
    check(quick(kind), case)


@SOLVERS
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_its_settings_hold_to(check, kind):
    check(kind)


@SOLVERS
def test_a_solver_that_sees_samples_beats_nearest_rounding_on_average(kind):
    check_learns_from_the_statistic(quick(kind, iterations=200), tiny_cases())


@SOLVERS
def test_the_estimate_of_work_grows_with_the_data_or_is_nothing(kind):
    little, much = (estimated_work(kind(), rows_per_sample=rows, samples=8) for rows in (1, 4))
    assert 0 <= little <= much
    assert (little > 0) == (much > 0)


def test_names_in_the_table_are_in_order_and_unlike_each_other():
    assert list(ROUNDING_SOLVERS) == sorted(ROUNDING_SOLVERS)
    assert all(name == name.lower() and " " not in name and "_" not in name for name in ROUNDING_SOLVERS)
    assert len(set(ROUNDING_SOLVERS.values())) == len(ROUNDING_SOLVERS)
