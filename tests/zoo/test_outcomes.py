"""The zoo finds what is wrong, and its page says what its tests ask for. The zoo itself takes minutes: `make zoo`."""

import dataclasses

import pytest
import torch
from architectures import ARCHITECTURES
from entry import Entry, Refusal, numbers
from facts import has
from steps import NEEDS, STEPS, Case, Outcome, batches, layouts, outcomes, sixteen_bits, unexpected
from table import MARKS, PAGE, page_of, rows_of
from torch import nn

from roundwise.errors import CalibrationError, CaptureError


class Branch(nn.Module):
    """Control flow that depends on values, which cannot be captured."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


REFUSED = Entry("branch", "plain", Branch, numbers(4), {"capture": Refusal(CaptureError, ("test_outcomes.py",))})


def test_a_refusal_that_is_listed_is_as_expected_and_the_steps_after_it_are_left_out():
    ended = list(outcomes(REFUSED))
    assert [outcome.ended for outcome in ended] == ["refused", *["left out"] * (len(STEPS) - 1)]
    assert unexpected(REFUSED, ended) == []


@pytest.mark.parametrize(
    "listed", [{}, {"capture": Refusal(CalibrationError, ())}, {"capture": Refusal(CaptureError, ("elsewhere.py",))}]
)
def test_a_refusal_that_is_not_listed_so_is_reported(listed):
    (line,) = unexpected(dataclasses.replace(REFUSED, refused=listed), list(outcomes(REFUSED)))
    assert has(line, "capture", "refused", "CaptureError")


def test_a_refusal_that_is_listed_and_does_not_happen_is_reported():
    entry = Entry("layer", "plain", lambda: nn.Linear(4, 4), numbers(4), REFUSED.refused)
    (line,) = unexpected(entry, [Outcome("capture", "passed")])
    assert has(line, "capture", "passed", "CaptureError", "test_outcomes.py")


@pytest.mark.parametrize("step", [sixteen_bits, batches, layouts])
def test_a_step_finds_a_network_that_computes_something_else(step):
    case = Case(Entry("layer", "plain", lambda: nn.Linear(4, 4), numbers(4)))
    step(case)  # and keeps what it made
    with torch.no_grad():
        case.module.weight[0, 0] += 0.1
    with pytest.raises(AssertionError, match="differs by"):
        step(case)


def test_the_page_of_outcomes_has_a_row_for_each_network_and_the_words_of_its_errors():
    name = next(iter(ARCHITECTURES))
    ended = [Outcome(step, "refused" if step == "ONNX" else "passed", "Error: 17" * (step == "ONNX")) for step in STEPS]
    page = page_of({name: ended}, "torch 2")
    assert rows_of(page) == {name: [*["✓"] * (len(STEPS) - 1), "refused"]}
    assert has(page, "torch 2", "ONNX", "Error: 17")


def test_the_zoo_has_at_least_sixty_networks_of_five_sources():
    assert len(ARCHITECTURES) >= 60
    sources = {"plain", "torchvision", "timm", "transformers", "diffusers"}
    assert {entry.source for entry in ARCHITECTURES.values()} == sources


def test_the_page_of_the_project_shows_the_steps_that_pass_and_those_that_are_refused():
    expected = {}
    for name, entry in ARCHITECTURES.items():
        assert entry.refused.keys() <= STEPS.keys()
        marks = dict.fromkeys(STEPS, MARKS["passed"])
        marks |= {step: MARKS["left out"] for step in STEPS if {"capture", NEEDS.get(step)} & entry.refused.keys()}
        marks |= dict.fromkeys(entry.refused, MARKS["refused"])
        expected[name] = list(marks.values())
    assert rows_of(PAGE.read_text(encoding="utf-8")) == expected
