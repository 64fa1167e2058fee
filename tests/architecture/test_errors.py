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
    "Add Avoid Bring Build Call Capture Check Choose Convert Create Download Export Free Get Give Hand Import Install "
    "Keep Leave Let Load Lower Make Mark Mend Move Name Number Override Pass Pick Put Quantize Raise Remove Rename "
    "Repair Replace Report Round Run Save Set Sort Start Store Take Train Try Turn Use Wait Wrap Write"
)
# An imperative begins a sentence or a clause, or follows "or", "and": "Remove it", "…: remove it", "… or remove it".
INSTRUCTION = re.compile(
    rf"(?:^|[.;:,(?!] +|\b(?:or|and|else|please) )(?:{'|'.join(f'{v}|{v.lower()}' for v in VERBS.split())})\b"
    r"|\b(?:must|give)\b|Did you mean"
)
CLAUSES = re.compile(r"[.:;?!]\s+(?=\S)|, (?:but|so|and|which|where|though)\s|\s\(")

# Messages to be mended: a name leaves its list with the message, or the test fails.
WITHOUT_TWO_CLAUSES = {
    "a number instead of a model",
    "an unknown interpolation",
    "no samples to evaluate on",
}
WITHOUT_INSTRUCTION = {
    "a class that is listed twice",
    "a crop of nothing",
    "a file that does not run",
    "a file that is not there",
    "a function that fails",
    "a function that gives something else",
    "a label below 0",
    "a label that is no class",
    "a layer that is not there",
    "a limit of nothing",
    "a method of one's own in a file",
    "a negative label",
    "a number instead of a model",
    "a program that is none",
    "a setting of another method",
    "a text of no labels",
    "a word instead of tables",
    "an array that is not there",
    "an option of no method",
    "an option without a value",
    "an unknown interpolation",
    "batches of nothing",
    "bits of activations said twice",
    "data of an unknown kind",
    "deviations below 0",
    "fewer labels than samples",
    "labels of floats",
    "masks of floats",
    "mean and std of other lengths",
    "more labels than samples",
    "no TOML",
    "no class left",
    "no layer",
    "no model",
    "no outputs",
    "no program",
    "no samples to evaluate on",
    "no share of channels",
    "no tolerance",
    "objects",
    "outputs of NaN",
    "preprocessing that nothing states",
    "weights of an unknown kind",
    "weights that are none",
    "words for labels",
}


def all_but(unfinished, reason):
    marks = [pytest.mark.xfail(strict=True, reason=reason)]
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=marks if name in unfinished else []) for name in CASES]
    )


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


@all_but(WITHOUT_TWO_CLAUSES, "the message does not say why")
def test_an_error_says_what_was_found_and_why_that_cannot_work(name, message):
    assert len(CLAUSES.split(message(name))) >= 2


@all_but(WITHOUT_INSTRUCTION, "the message does not say what to do")
def test_an_error_says_what_to_do(name, message):
    assert INSTRUCTION.search(message(name))


def test_every_class_of_errors_is_in_the_table():
    assert {case.kind for case in CASES.values()} == set(RoundwiseError.__subclasses__())
    assert CASES.keys() >= WITHOUT_TWO_CLAUSES | WITHOUT_INSTRUCTION
