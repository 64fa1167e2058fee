"""For authors of rounding solvers and range estimators: tiny problems, checks, and the true optimum.

`tests/conformance` puts every method in the tables of `roundwise.methods.rounding` and `roundwise.methods.ranges`
through every check.
A method outside of them can be tested in the same way:

    @pytest.mark.parametrize("case", cases(), ids=str)
    @pytest.mark.parametrize("check", SOLVER_CHECKS)
    def test_my_solver(check, case):
        check(MySolver(), case)

A check returns None, or raises `AssertionError` with a sentence that says what was found.
"""

from roundwise.testing.activation_checks import ACTIVATION_CHECKS, value_cases
from roundwise.testing.brute_force import best_rounding
from roundwise.testing.cases import Case, cases, tiny_cases
from roundwise.testing.range_checks import RANGE_CHECKS
from roundwise.testing.settings_checks import SETTINGS_CHECKS, quick
from roundwise.testing.solver_checks import SOLVER_CHECKS, check_learns_from_the_statistic

__all__ = [
    "ACTIVATION_CHECKS",
    "RANGE_CHECKS",
    "SETTINGS_CHECKS",
    "SOLVER_CHECKS",
    "Case",
    "best_rounding",
    "cases",
    "check_learns_from_the_statistic",
    "quick",
    "tiny_cases",
    "value_cases",
]
