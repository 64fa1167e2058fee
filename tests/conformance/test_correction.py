"""Every correction of the table through the checks of settings, and what any of them must do for a layer."""

import pytest
import torch

from roundwise.methods.corrections import CORRECTIONS
from roundwise.testing import SETTINGS_CHECKS, cases

CORRECTION = pytest.mark.parametrize("kind", CORRECTIONS.values(), ids=CORRECTIONS)


@CORRECTION
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_its_settings_hold_to(check, kind):
    check(kind)


@CORRECTION
@pytest.mark.parametrize("case", cases(), ids=str)
def test_a_shifted_bias_makes_no_error_larger(kind, case):
    weight = case.grid().fake_quantize(case.weight)
    bias = case.layer.bias.reshape(weight.shape[:2])
    before = weight.clone(), bias.clone()
    shift = kind().shift(weight, bias, case.statistic(kind.needs))
    assert (shift.dtype, shift.shape) == (torch.float32, bias.shape)
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])
    error = case.layer.fold_outputs(
        case.targets.double() - case.layer.apply_matrix(weight.double(), case.inputs.double())
    )
    was, now = error.square().mean(-1), (error - shift.double().unsqueeze(-1)).square().mean(-1)
    assert (now <= was * (1 + 1e-6) + 1e-12).all()


def test_names_in_the_table_are_in_order_and_unlike_each_other():
    assert list(CORRECTIONS) == sorted(CORRECTIONS)
    assert all(name == name.lower() and " " not in name and "_" not in name for name in CORRECTIONS)
    assert len(set(CORRECTIONS.values())) == len(CORRECTIONS)
