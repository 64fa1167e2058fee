"""`roundwise reproduce`: a paper's table on a network of one's own."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from roundwise.cli.app import app
from roundwise.errors import FileFormatError, RecipeError
from roundwise.pipeline import quantize
from roundwise.recipe import Recipe, Weights
from roundwise.reproduction import (
    PAPERS,
    Journal,
    Outcome,
    Result,
    Row,
    Settings,
    Study,
    Table,
    TaskLoss,
    finished,
    page,
    quantize_row,
    run,
    run_key,
)
from roundwise.rounding import AdaRound, Nearest, Stochastic

TABLES = PAPERS["adaround"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def study():
    images = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model = network().eval()
    with torch.no_grad():
        labels = model(images).argmax(1)

    def score(module):
        with torch.no_grad():
            return 100 * float((module(images).argmax(1) == labels).float().mean())

    return Study(model, images, score, "a small network")


@pytest.mark.parametrize(
    "table", [name if name == "table6" else pytest.param(name, marks=pytest.mark.slow) for name in TABLES]
)
def test_every_table_runs_and_has_a_page(table):
    few = Settings(bits=3, iterations=2, seeds=2)
    rows = TABLES[table].rows(few)
    assert len({row.name for row in rows}) == len(rows)
    if table == "table1":
        assert rows[-1].runs == 100
        return  # a hundred runs are a test of patience
    results = run(study(), TABLES[table], few, Journal())
    text = page(study(), TABLES[table], few, results, "roundwise reproduce …", 100.0)
    assert [result.row.name for result in results] == [row.name for row in rows]
    assert all(len(result.scores) == (2 if result.row.runs is None else 1) for result in results)
    assert all(f"| {row.name} | {row.published} |" in text for row in rows)


def test_the_page_of_one_seed_speaks_of_one_seed():
    text = page(study(), TABLES["table1"], Settings(seeds=1), [], "roundwise reproduce …", 100.0)
    assert "; up to 1 seed where" in text
    assert "5 seeds where" in page(study(), TABLES["table1"], Settings(), [], "roundwise reproduce …", 100.0)


def test_the_page_has_the_best_of_the_runs_where_the_paper_has_it():
    *_, row = TABLES["table1"].rows(Settings())
    result = Result(row, (50.0, 60.5, 40.0), (0.1, 0.1, 0.1))
    text = page(study(), TABLES["table1"], Settings(), [result], "roundwise reproduce …", 100.0)
    assert "| stochastic | 52.06 ± 5.52 | 50.17 ± 10.25 | 3 | 0.1 |" in text
    assert "| stochastic (best) | 63.06 | 60.50 | 3 | |" in text


def codes(quantized):
    return {name: value for name, value in quantized.graph.constants.items() if name.endswith("_codes")}


@pytest.mark.parametrize("first_layer_only", [True, False])
def test_two_samples_give_the_codes_of_all_where_nothing_looks_at_them(first_layer_only):
    here, recipe = study(), Recipe(Weights(bits=3), Stochastic())
    row = Row("stochastic", "", recipe, first_layer_only)
    quantized = quantize_row(here, row, 7)
    found = codes(quantized)
    overrides = {"*": None, "0": recipe.weights} if first_layer_only else {}
    expected = codes(
        quantize(here.model, here.calibration, Recipe(Weights(bits=3), Stochastic(), seed=7, overrides=overrides))
    )
    assert len(found) == (1 if first_layer_only else 3)
    assert quantized.report.samples == 2
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_method_that_looks_at_the_samples_gets_all_of_them():
    row = Row("AdaRound", "", Recipe(Weights(bits=3), AdaRound(iterations=1)), True)
    assert quantize_row(study(), row, 0).report.samples == 24


@pytest.mark.parametrize("search", ["cross-entropy-method", "tabu"])
def test_the_first_layer_by_the_task_loss_costs_no_more_than_nearest_rounding(search):
    here, weights = study(), Weights(bits=2)
    row = Row("task loss", "", Recipe(weights, Nearest()), True, task_loss=TaskLoss(search, samples=8))
    (chosen,) = codes(quantize_row(here, row, 0)).values()
    (hessian,) = here.hessians.values()
    assert hessian.samples == 8
    grid = hessian.grid(weights)
    cost = hessian.cost(grid.dequantize(chosen.reshape(hessian.weight.shape)))
    assert cost < hessian.cost(grid.fake_quantize(hessian.weight))


TWO_ROWS = Table(
    "Two rows",
    lambda s: [
        Row("nearest", "", Recipe(s.weights, Nearest()), True),
        Row("stochastic", "", Recipe(s.weights, Stochastic()), True, None),
    ],
)


def test_a_journal_is_gone_on_with_and_its_runs_are_not_done_again(tmp_path):
    path, told = tmp_path / "runs.jsonl", []
    first = run(study(), TWO_ROWS, Settings(bits=2, seeds=1), Journal(path), tell=told.append)
    assert len(told) == len(path.read_text().splitlines()) == 2
    more = Settings(bits=2, seeds=2)
    begun = finished(study().name, TWO_ROWS, more, Journal(path))
    assert [len(result.scores) for result in begun] == [1, 1]
    again = run(study(), TWO_ROWS, more, Journal(path), tell=told.append)
    assert len(told) == 3  # one row has chance in it, and a second seed
    assert [result.scores[0] for result in again] == [result.scores[0] for result in first]


def test_a_run_that_was_stopped_while_it_was_written_is_done_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    Journal(path).add("a run", Outcome(1.0, 2.0))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    journal = Journal(path)
    assert path.read_bytes() == whole
    journal.add("another", Outcome(3.0, 4.0))
    assert Journal(path).get("another") == Outcome(3.0, 4.0)
    assert Journal(path).get("a run") == Outcome(1.0, 2.0)


@pytest.mark.parametrize("characters", [1, 4, 9, 30])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_torn_line_is_cut_off_and_nothing_before_it(tmp_path, characters, newline):
    path = tmp_path / "runs.jsonl"
    for key in ("first", "second"):
        Journal(path).add(key, Outcome(1.0, 2.0))
    whole = path.read_bytes().replace(b"\n", newline)
    path.write_bytes(whole + whole[:characters])
    journal = Journal(path)
    assert path.read_bytes() == whole
    journal.add("third", Outcome(3.0, 4.0))
    assert [Journal(path).get(key) for key in ("second", "third")] == [Outcome(1.0, 2.0), Outcome(3.0, 4.0)]


@pytest.mark.parametrize("line", ['{"run": "a", "score": 1, "seconds": 2}', '{"score": 1, "seconds": 2, "run": "a"}'])
@pytest.mark.parametrize("newline", ["", "\r", "\n"])
def test_a_last_line_without_newline_keeps_its_run_and_gets_one(tmp_path, line, newline):
    path = tmp_path / "runs.jsonl"
    path.write_bytes((line + newline).encode())
    Journal(path).add("b", Outcome(3.0, 4.0))
    assert [Journal(path).get(key) for key in "ab"] == [Outcome(1.0, 2.0), Outcome(3.0, 4.0)]


@pytest.mark.parametrize("score", ["-5", "100.5", "NaN", "Infinity", "true", "1" + 400 * "0", "-1" + 400 * "0"])
def test_a_score_that_is_no_percentage_is_refused_with_its_line(tmp_path, score):
    path = tmp_path / "runs.jsonl"
    Journal(path).add("a run", Outcome(0.0, 0.0))
    Journal(path).add("a perfect run", Outcome(100.0, 0.0))
    Journal(path)
    with path.open("a") as file:
        file.write(f'{{"run": "another", "score": {score}, "seconds": 1}}\n')
    with pytest.raises(FileFormatError, match=r"line 3: 'score' is .*0 to 100.*Remove the line"):
        Journal(path)


@pytest.mark.parametrize("seconds", ["-1", "NaN", "Infinity", "true", "1" + 400 * "0"])
def test_seconds_that_are_no_time_are_refused_with_their_line(tmp_path, seconds):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"run": "a run", "score": 1, "seconds": {seconds}}}\n')
    with pytest.raises(FileFormatError, match=r"line 1: 'seconds' is .*0 or more.*Remove the line"):
        Journal(path)


def test_another_setting_is_another_run():
    one, other = (Row("", "", Recipe(Weights(bits=bits), Nearest())) for bits in (2, 3))
    by_task_loss = Row("", "", one.recipe, True, task_loss=TaskLoss())
    keys = {run_key("a study", one, 0), run_key("a study", one, 1), run_key("another", one, 0)}
    keys |= {run_key("a study", row, 0) for row in (other, Row("", "", one.recipe, True), by_task_loss)}
    assert len(keys) == 6


def test_a_row_without_a_finished_run_is_left_out():
    assert finished("a small network", TABLES["table6"], Settings(), Journal()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        '{"run": 3}',
        '{"run": "a", "score": "1", "seconds": 2}',
        "[]",
        "nothing of the kind",
        "3",
        pytest.param("[" * 100_000, id="brackets"),
        pytest.param("1" * 5000, id="digits"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_with_its_line(tmp_path, wrong):
    path = tmp_path / "runs.jsonl"
    Journal(path).add("a run", Outcome(1.0, 2.0))
    with path.open("a") as file:
        file.write(wrong + "\n")
    with pytest.raises(FileFormatError, match=r"line 2.*no journal"):
        Journal(path)


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 9}, {"iterations": 0}, {"seeds": 0}, {"seeds": 1.5}, {"first_layer_iterations": 0}],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RecipeError):
        Settings(**wrong)


@pytest.mark.parametrize(("more", "expected"), [(50, 50), (None, 2)])
def test_the_first_layer_alone_may_have_iterations_of_its_own(more, expected):
    for row in TABLES["table3"].rows(Settings(iterations=2, first_layer_iterations=more)):
        assert row.recipe.rounding.iterations == (expected if row.first_layer_only else 2)


def test_the_first_layer_is_the_one_that_runs_first():
    assert study().first_layer == "0"


# --------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n    return nn.Sequential("
        "nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))\n"
    )
    images = np.random.default_rng(0).standard_normal((24, 1, 8, 8)).astype("float32")
    np.savez(tmp_path / "train.npz", inputs=images)
    np.savez(tmp_path / "test.npz", inputs=images, labels=np.arange(24) % 3)
    np.savez(tmp_path / "bare.npz", inputs=images)
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(app, ["reproduce", *words])


def test_a_table_from_the_command_line(files):
    words = ["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "test.npz"]
    few = ["--iterations", "2", "--seeds", "1", "--bits", "3"]
    result = invoke(*words, *few, "--out", "page.md", "--journal", "runs.jsonl")
    assert result.exit_code == 0, result.output
    text = (files / "page.md").read_text()
    assert "| bias correction | 38.87 |" in text
    as_json = invoke(*words, *few, "--journal", "runs.jsonl", "--json")
    rows = json.loads(as_json.stdout)["rows"]
    assert f"| {rows[0]['scores'][0]:.2f} |" in text
    runs = len((files / "runs.jsonl").read_text().splitlines())
    with np.load("train.npz") as old:
        np.savez(files / "train.npz", inputs=old["inputs"] + 1)
    assert invoke(*words, *few, "--journal", "runs.jsonl").exit_code == 0
    assert len((files / "runs.jsonl").read_text().splitlines()) == 2 * runs  # other images are other runs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adaround", "table99", "net.py:build", "--data", "train.npz", "--test", "test.npz"], "there are table1"),
        (["adaround", "table6", "net.py:build", "--data", "train.npz"], "--data and --test"),
        (["adaround", "table6", "net.py:build", "--imagenet", ".", "--test", "test.npz"], "stands for"),
        (["adaround", "table6", "net.py:build", "--imagenet", "."], "no folder"),
        (["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "bare.npz"], "neither labels nor"),
        (["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "test.npz", "--out", "x.txt"], ".md"),
        (
            ["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "test.npz", "--journal", "net.py"],
            "no journal",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(files, words, said):
    result = invoke(*words)
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())
    assert "float:" not in result.output
    assert not list(files.glob("*.md"))
