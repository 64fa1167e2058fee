"""Every range estimator of the table through every check, on every case. A new one needs no line here."""

import pytest
from thirds import in_thirds

from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.testing import RANGE_CHECKS, SETTINGS_CHECKS, cases, quick

ESTIMATORS = pytest.mark.parametrize("kind", RANGE_ESTIMATORS.values(), ids=RANGE_ESTIMATORS)


@pytest.mark.parametrize(("case", "check", "kind"), in_thirds(cases(), RANGE_CHECKS, RANGE_ESTIMATORS))
def test_an_estimator_holds_to(check, case, kind):
    check(quick(kind), case)


@ESTIMATORS
@pytest.mark.parametrize("check", SETTINGS_CHECKS, ids=lambda check: check.__name__)
def test_its_settings_hold_to(check, kind):
    check(kind)


def test_names_in_the_table_are_in_order_and_unlike_each_other():
    assert list(RANGE_ESTIMATORS) == sorted(RANGE_ESTIMATORS)
    assert all(name == name.lower() and " " not in name and "_" not in name for name in RANGE_ESTIMATORS)
    assert len(set(RANGE_ESTIMATORS.values())) == len(RANGE_ESTIMATORS)
