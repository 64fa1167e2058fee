"""RESULTS.md is what the journals say."""

import importlib
import json
from pathlib import Path

import pytest
from facts import has

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("results")


def line(what: dict, figures: dict, commit: str = "abc", **other: str) -> str:
    origin = {"commit": commit, "date": "2026-12-01", "hardware": "a computer", "command": "python run.py"}
    return json.dumps({**origin, **other, "what": what, "figures": figures}) + "\n"


def test_the_committed_page_is_what_the_journals_give(results):
    assert results.page() == results.RESULTS.read_text(encoding="utf-8")


def test_the_newest_line_about_a_thing_counts_and_keeps_its_place(results, tmp_path):
    file = tmp_path / "journal.jsonl"
    file.write_text(line({"bits": 4}, {"s": 1}) + line({"bits": 3}, {"s": 2}) + line({"bits": 4}, {"s": 5}, "def"))
    lines = results.read_journal(file)
    assert [(one.what["bits"], one.figures["s"], one.commit) for one in lines] == [(4, 5, "def"), (3, 2, "abc")]


def test_rows_that_were_measured_in_different_ways_say_how(results, tmp_path):
    file = tmp_path / "journal.jsonl"
    file.write_text(line({"bits": 4}, {"s": 1}) + line({"bits": 3}, {"error": 0.5}, hardware="another"))
    shown = results.table(results.read_journal(file)).splitlines()
    assert shown[0] == "| bits | s | error | run |"
    assert shown[2:4] == ["| 4 | 1 |  | (a) |", "| 3 |  | 0.5 | (b) |"]
    assert has(shown[-2], "(a)", "abc", "a computer", "python run.py")
    assert has(shown[-1], "(b)", "another")


def test_a_line_that_is_no_line_of_a_journal_is_named(results, tmp_path):
    file = tmp_path / "journal.jsonl"
    file.write_text(line({"bits": 4}, {"s": 1}) + '{"accuracy": 81.0}\n')
    with pytest.raises(SystemExit) as raised:
        results.read_journal(file)
    assert has(str(raised.value), str(file), 2)


def test_runs_of_the_accuracy_benchmark_are_pooled_over_seeds(results):
    run = {"network": "resnet20", "bits": 4, "granularity": "per-tensor", "samples": 1024, "solver": "gram-adaround"}
    run |= {"float": 81.0, "nearest": 69.84, "threads": 1, "hardware": "a computer"}
    runs = [{**run, "seed": n, "accuracy": 80.0 + n, "output_error": 0.01, "seconds": 20 + n} for n in range(3)]
    (pooled,) = results.pooled(runs, "abc", "2026-12-01", "python run.py")
    assert pooled.what == {
        "network": "resnet20",
        "bits": 4,
        "granularity": "per tensor",
        "images": 1024,
        "method": "gram-adaround",
    }
    assert has(pooled.figures["accuracy"], "81.00", "1.00", 3)
    assert (pooled.figures["float"], pooled.figures["output error"], pooled.figures["s"]) == ("81.00", "0.0100", "21")
    assert has(pooled.hardware, "a computer", 1)
