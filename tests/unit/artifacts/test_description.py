"""The description in a file is checked within limits of memory and depth."""

import tracemalloc

import pytest
from facts import raises

import roundwise as rw
from roundwise.artifacts.description import DEEPEST, check_plain


@pytest.mark.parametrize("make", [list, dict, str, float])
def test_checking_a_description_takes_no_memory_of_its_own(make):
    data = {"notes": [make() for _ in range(100_000)]}
    tracemalloc.start()
    try:
        check_plain(data)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("inner", [0, "a", []])
def test_a_description_is_nested_as_deep_as_allowed_and_no_deeper(inner):
    data = inner
    for level in range(DEEPEST):
        data = [data] if level % 2 else {"a": data}
    check_plain(data)
    with raises(rw.FileFormatError, DEEPEST):
        check_plain([data])
