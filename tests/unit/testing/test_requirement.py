"""The tables of checks hold every check of their file."""

import pytest

from roundwise.testing import activation_checks, range_checks, settings_checks, solver_checks


@pytest.mark.parametrize(
    ("module", "table"),
    [
        (activation_checks, activation_checks.ACTIVATION_CHECKS),
        (range_checks, range_checks.RANGE_CHECKS),
        (settings_checks, settings_checks.SETTINGS_CHECKS),
        (solver_checks, (*solver_checks.SOLVER_CHECKS, solver_checks.check_learns_from_the_statistic)),
    ],
    ids=["activations", "ranges", "settings", "solvers"],
)
def test_no_check_of_a_file_is_left_out_of_its_table(module, table):
    defined = [name for name in vars(module) if name.startswith("check_")]
    assert [check.__name__ for check in table] == defined
    assert len(defined) >= 3
