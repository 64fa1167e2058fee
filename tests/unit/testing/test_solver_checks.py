"""The checks of solvers, on solvers that are wrong."""

import pytest
from facts import raises

import roundwise as rw
from roundwise.methods.interfaces import RoundingSolver, Traits
from roundwise.statistics import Nothing
from roundwise.testing import cases
from roundwise.testing.solver_checks import SOLVER_CHECKS, check_it_is_not_worse_than_nearest


class Bare(RoundingSolver[Nothing]):
    """Gives codes, and not a Rounding."""

    needs = Nothing
    traits = Traits()

    def solve(self, problem, generator):
        return problem.grid.quantize(problem.weight)


@pytest.mark.parametrize(
    "check", [one for one in SOLVER_CHECKS if one is not check_it_is_not_worse_than_nearest], ids=lambda it: it.__name__
)
def test_a_solver_that_gives_codes_alone_is_told_what_to_give(check):
    if check.__name__ == "check_arguments_are_left_alone":  # looks at the arguments only
        return
    with raises(rw.RecipeError, "Bare", "Tensor", "Rounding", "solve"):
        check(Bare(), cases()[0])
