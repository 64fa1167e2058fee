"""Every error says what was found, why it cannot work, and what to do.

A message is prose, so no test here knows a sentence of it. Of each error are known the facts that its message must
hold; that it also says why shows in its having two clauses, and that it says what to do in an instruction.
"""

import functools
import re

import pytest
from facts import missing
from provoked import CASES

from roundwise.errors import RoundwiseError

VERBS = (
    "Add Avoid Bring Build Call Capture Check Choose Convert Correct Create Download Export Free Get Give Hand "
    "Import Install Keep Leave Let Load Lower Make Mark Mend Move Name Number Override Pass Pick Put Quantize "
    "Raise Remove Rename Repair Replace Report Round Run Save Set Sort Start Store Take Train Try Turn Use Wait "
    "Wrap Write"
)
# An imperative begins a sentence or a clause, or follows "or", "and": "Remove it", "…: remove it", "… or remove it".
INSTRUCTION = re.compile(
    rf"(?:^|[.;:,(?!] +|\b(?:or|and|else|please) )(?:{'|'.join(f'{v}|{v.lower()}' for v in VERBS.split())})\b"
    r"|\b(?:must|give)\b|Did you mean"
)
CLAUSES = re.compile(r"[.:;?!]\s+(?=\S)|, (?:but|so|and|which|where|though)\s|\s\(")


@pytest.fixture(scope="module")
def message(tmp_path_factory):
    """The message of an error by its name in the table; the error is provoked once."""

    @functools.cache
    def of(name):
        with pytest.raises(RoundwiseError) as caught:
            CASES[name].provoke(tmp_path_factory.mktemp("empty"))
        assert type(caught.value) is CASES[name].kind, caught.value
        return " ".join(str(caught.value).split())

    return of


@pytest.mark.parametrize("name", CASES)
def test_an_error_holds_the_facts(name, message):
    assert not missing(message(name), *CASES[name].facts), message(name)


@pytest.mark.parametrize("name", CASES)
def test_an_error_says_what_was_found_and_why_that_cannot_work(name, message):
    assert len(CLAUSES.split(message(name))) >= 2


@pytest.mark.parametrize("name", CASES)
def test_an_error_says_what_to_do(name, message):
    assert INSTRUCTION.search(message(name))


def test_every_class_of_errors_is_in_the_table():
    assert {case.kind for case in CASES.values()} == set(RoundwiseError.__subclasses__())
