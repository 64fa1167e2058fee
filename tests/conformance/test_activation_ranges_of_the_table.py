"""Every method for activation ranges in the table through every check. A new one needs no line here."""

import pytest

from roundwise.methods.activations import ACTIVATION_RANGES
from roundwise.numerics.grid import Codebook
from roundwise.testing import ACTIVATION_CHECKS, SETTINGS_CHECKS, value_cases

METHODS = pytest.mark.parametrize("kind", ACTIVATION_RANGES.values(), ids=ACTIVATION_RANGES)
# Those that read ranges off samples; what the others expect without has tests of its own.
READERS = {name: kind for name, kind in ACTIVATION_RANGES.items() if kind.needs.from_samples}


@pytest.mark.parametrize("kind", READERS.values(), ids=READERS)
@pytest.mark.parametrize("check", ACTIVATION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", value_cases())
@pytest.mark.parametrize("codebook", [Codebook(8, symmetric=False), Codebook(4), Codebook(2, symmetric=False)], ids=str)
def test_a_method_holds_to(check, case, codebook, kind):
    check(kind(), value_cases()[case], codebook)


@METHODS
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_its_settings_hold_to(check, kind):
    check(kind)


def test_names_in_the_table_are_in_order():
    assert list(ACTIVATION_RANGES) == sorted(ACTIVATION_RANGES)
