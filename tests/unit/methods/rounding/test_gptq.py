"""GPTQ's own properties; what every solver must hold to is in the conformance tests."""

import dataclasses

import pytest
import torch

import roundwise as rw
from roundwise.errors import RecipeError
from roundwise.statistics import Gram, Nothing
from roundwise.testing import cases
from roundwise.testing.solver_checks import solve

LINEAR = cases()[0]


def test_gptq_without_inputs_that_depend_on_each_other_is_nearest_rounding():
    case = LINEAR
    independent = torch.eye(10).repeat(48, 1, 1)[:, :, :] * 3.0
    clean = dataclasses.replace(case, inputs=independent, targets=case.layer.apply_matrix(case.weight, independent))
    codes = solve(rw.rounding.GPTQ(), clean.problem(Gram)).codes
    assert torch.equal(codes, case.grid().quantize(case.weight))


def test_gptq_without_an_inverse_names_the_layer_and_the_way_out():
    few = dataclasses.replace(LINEAR, inputs=LINEAR.inputs[:2] * 1e3, targets=LINEAR.targets[:2])
    problem = dataclasses.replace(few.problem(Nothing), statistics=few.statistic(Gram, [2]))
    with pytest.raises(RecipeError, match=r"'linear 10 to 4'.*ridge=1e-30"):
        solve(rw.rounding.GPTQ(ridge=1e-30), problem)
