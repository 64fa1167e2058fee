"""The checks of settings: what a message says that a value must be."""

from dataclasses import dataclass
from typing import Literal

import pytest

from roundwise.errors import RecipeError
from roundwise.methods.settings import LARGEST, check_types


@dataclass(frozen=True)
class Settings:
    share: float = 0.5
    steps: int = 1
    limit: float | None = None
    kind: Literal["one", "two"] = "one"
    on: bool = True

    def __post_init__(self):
        check_types(self)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("share", "a"), ("share", True), ("share", None), ("steps", 0.5), ("limit", "a"), ("kind", 3), ("on", 1)],
)
def test_the_largest_number_is_not_named_where_the_value_is_no_such_number(setting, value):
    with pytest.raises(RecipeError) as caught:
        Settings(**{setting: value})
    assert f"{setting}={value!r}" in str(caught.value)
    assert f"{LARGEST:.0e}" not in str(caught.value)


@pytest.mark.parametrize("setting", ["share", "steps", "limit"])
@pytest.mark.parametrize("value", [LARGEST + 1, -LARGEST - 1, 10**400])
def test_the_largest_number_is_named_where_the_value_is_larger(setting, value):
    with pytest.raises(RecipeError) as caught:
        Settings(**{setting: value})
    assert f"{setting}={value!r}" in str(caught.value)
    assert f"{LARGEST:.0e}" in str(caught.value)


@pytest.mark.parametrize(("setting", "value"), [("kind", LARGEST + 1), ("on", LARGEST + 1)])
def test_the_largest_number_is_not_named_where_no_number_will_do(setting, value):
    with pytest.raises(RecipeError) as caught:
        Settings(**{setting: value})
    assert f"{LARGEST:.0e}" not in str(caught.value)
