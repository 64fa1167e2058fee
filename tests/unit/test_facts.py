"""The tests' own way to look for facts in a text."""

import warnings

import pytest
from facts import has, raises, warns


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("layer 'conv1' has 3 columns", "conv1"),
        ("layer 'conv1' has 3 columns", 3),
        ("1,024 samples.", 1024),
        ("ends in 0.5.", 0.5),
        ("a size of\n  [2, 3]", "[2, 3]"),
        ("label -1", -1),
        ("│ \x1b[32m2\x1b[0m layers │", 2),
    ],
)
def test_a_fact_is_found(text, fact):
    assert has(text, fact)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("layer 'conv10' has 13 columns", "conv1"),
        ("layer 'conv10' has 13 columns", 3),
        ("0.3 of 3.5", 3),
        ("1,024 samples", 24),
        ("1,024 samples", 1),
        ("pytest-4/x", 4),
        ("anything", 3),
    ],
)
def test_a_part_of_another_word_or_number_is_none(text, fact):
    assert not has(text, fact)


def test_an_error_or_a_warning_without_the_fact_fails_the_test():
    with raises(ValueError, 3):
        raise ValueError("3 columns")
    with pytest.raises(AssertionError), raises(ValueError, 4):
        raise ValueError("3 columns")
    with pytest.raises(AssertionError), warns(UserWarning, 4):
        warnings.warn("3 columns", UserWarning, stacklevel=1)
