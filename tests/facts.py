"""What tests expect of texts that people read: the facts in them (names, numbers), whatever sentences stand around."""

import re
from contextlib import contextmanager

import pytest


def missing(text, *facts):
    """The facts that a text, an error or a warning does not hold.

    A fact is found as a whole word or number: 3 is not in "13" or "0.3", "conv1" not in "conv10". Large numbers may be
    written with commas. Line breaks count as spaces, and so do the colours and frames that a terminal draws.
    """
    text = " ".join(re.sub(r"│|\x1b\[[0-9;?]*[A-Za-z]", " ", str(text)).split())
    return [fact for fact in facts if not re.search(_pattern(fact), text)]


def _pattern(fact):
    number = isinstance(fact, int | float) and not isinstance(fact, bool)
    written = {str(fact), f"{fact:,}"} if number else {" ".join(str(fact).split())}
    before = r"(?<![\w.])(?<!\d,)(?<!\w-)" if number else r"(?<!\w)"
    after = r"(?!\w|[.,]\d)" if number else r"(?!\w)"
    return "|".join(
        (before if one[0].isalnum() else "") + re.escape(one) + (after if one[-1].isalnum() else "") for one in written
    )


def has(text, *facts):
    """Whether a text holds all of these facts."""
    return not missing(text, *facts)


@contextmanager
def raises(kind, *facts):
    """Expect an error of this type whose message holds all of these facts."""
    with pytest.raises(kind) as caught:
        yield caught
    assert not missing(caught.value, *facts), str(caught.value)


@contextmanager
def warns(kind, *facts):
    """Expect a warning of this type whose message holds all of these facts."""
    with pytest.warns(kind) as caught:
        yield caught
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, kind)]
    assert any(has(text, *facts) for text in texts), texts
