"""`roundwise reproduce`: a paper's table on a network of one's own."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from facts import has, raises
from PIL import Image
from recipes import quantizing
from torch import nn
from vocfiles import classes_of, palette_image, write_voc

from roundwise.api import quantize
from roundwise.cli.app import app
from roundwise.errors import FileFormatError, RecipeError
from roundwise.methods.rounding import GramAdaRound, Nearest, Stochastic
from roundwise.recipe.settings import Weights
from roundwise.recipe.stages import Quantize
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
    assert has(text, "1 seed")
    assert has(page(study(), TABLES["table1"], Settings(), [], "roundwise reproduce …", 100.0), "5 seeds")


def test_the_page_has_the_best_of_the_runs_where_the_paper_has_it():
    *_, row = TABLES["table1"].rows(Settings())
    result = Result(row, (50.0, 60.5, 40.0), (0.1, 0.1, 0.1))
    text = page(study(), TABLES["table1"], Settings(), [result], "roundwise reproduce …", 100.0)
    assert "| stochastic | 52.06 ± 5.52 | 50.17 ± 10.25 | 3 | 0.1 |" in text
    assert "| stochastic (best) | 63.06 | 60.50 | 3 | |" in text


def codes(quantized):
    return {name: weight.codes for name, weight in quantized.weights.items()}


@pytest.mark.parametrize("first_layer_only", [True, False])
def test_two_samples_give_the_codes_of_all_where_nothing_looks_at_them(first_layer_only):
    here, recipe = study(), quantizing(Weights(bits=3), Stochastic())
    row = Row("stochastic", "", recipe, first_layer_only)
    quantized = quantize_row(here, row, 7)
    found = codes(quantized)
    overrides = {"*": None, "0": recipe.stage(Quantize).weights} if first_layer_only else {}
    expected = codes(
        quantize(here.model, here.calibration, quantizing(Weights(bits=3), Stochastic(), seed=7, overrides=overrides))
    )
    assert len(found) == (1 if first_layer_only else 3)
    assert quantized.report.samples == 2
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_method_that_looks_at_the_samples_gets_all_of_them():
    row = Row("GramAdaRound", "", quantizing(Weights(bits=3), GramAdaRound(iterations=1)), True)
    assert quantize_row(study(), row, 0).report.samples == 24


@pytest.mark.parametrize("search", ["cross-entropy-method", "tabu"])
def test_the_first_layer_by_the_task_loss_costs_no_more_than_nearest_rounding(search):
    here, weights = study(), Weights(bits=2)
    row = Row("task loss", "", quantizing(weights, Nearest()), True, task_loss=TaskLoss(search, samples=8))
    (chosen,) = codes(quantize_row(here, row, 0)).values()
    (hessian,) = here.hessians.values()
    assert hessian.samples == 8
    grid = hessian.grid(weights)
    cost = hessian.cost(grid.dequantize(chosen.reshape(hessian.weight.shape)))
    assert cost < hessian.cost(grid.fake_quantize(hessian.weight))


TWO_ROWS = Table(
    "Two rows",
    lambda s: [
        Row("nearest", "", quantizing(s.weights, Nearest()), True),
        Row("stochastic", "", quantizing(s.weights, Stochastic()), True, None),
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
    with raises(FileFormatError, "runs.jsonl", 3, "'score'", 0, 100):
        Journal(path)


@pytest.mark.parametrize("seconds", ["-1", "NaN", "Infinity", "true", "1" + 400 * "0"])
def test_seconds_that_are_no_time_are_refused_with_their_line(tmp_path, seconds):
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{{"run": "a run", "score": 1, "seconds": {seconds}}}\n')
    with raises(FileFormatError, "runs.jsonl", 1, "'seconds'", 0):
        Journal(path)


def test_another_setting_is_another_run():
    one, other = (Row("", "", quantizing(Weights(bits=bits), Nearest())) for bits in (2, 3))
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
    with raises(FileFormatError, "runs.jsonl", 2):
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
        assert row.recipe.stage(Quantize).rounding.iterations == (expected if row.first_layer_only else 2)


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
    ("words", "facts"),
    [
        (["adaround", "table99", "net.py:build", "--data", "train.npz", "--test", "test.npz"], ("table99", "table1")),
        (["adaround", "table6", "net.py:build", "--data", "train.npz"], ("--data", "--test")),
        (["adaround", "table6", "net.py:build", "--imagenet", ".", "--test", "test.npz"], ("--imagenet", "--test")),
        (["adaround", "table6", "net.py:build", "--imagenet", "."], ("--imagenet", "train")),
        (
            ["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "bare.npz"],
            ("bare.npz", "labels", "masks"),
        ),
        (
            ["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "test.npz", "--out", "x.txt"],
            ("x.txt", ".md"),
        ),
        (
            ["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "test.npz", "--journal", "net.py"],
            ("net.py", 1),
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(files, words, facts):
    result = invoke(*words)
    assert result.exit_code in (1, 2)
    assert has(result.output, *facts)
    assert "%" not in result.output
    assert not list(files.glob("*.md"))


NEAREST = ("adaround", "table1", "net.py:build", "--data", "train.npz", "--test", "test.npz")


@pytest.fixture
def two_rows(files, monkeypatch):
    monkeypatch.setitem(TABLES, "table1", TWO_ROWS)
    return files


def resumed(*words):
    """What is said of the journal, and how many lines it has afterwards."""
    result = invoke(*NEAREST, "--seeds", "1", "--journal", "runs.jsonl", *words)
    assert result.exit_code == 0, result.output
    lines = Path("runs.jsonl").read_text().splitlines()
    return [line for line in result.stderr.splitlines() if "journal:" in line], len(lines)


def test_a_journal_goes_on_with_the_same_samples_in_whatever_batches(two_rows):
    assert resumed() == ([], 2)
    said, lines = resumed("--batch-size", "5")
    (line,) = said
    assert has(line, 2)
    assert lines == 2


def other_samples(folder, _):
    with np.load("test.npz") as old:
        np.savez(folder / "test.npz", inputs=old["inputs"][::-1], labels=old["labels"][::-1])


def other_labels(folder, _):
    with np.load("test.npz") as old:
        np.savez(folder / "test.npz", inputs=old["inputs"], labels=np.roll(old["labels"], 1))


def other_code(folder, _):
    text = (folder / "net.py").read_text()
    (folder / "net.py").write_text(text.replace("nn.ReLU(), nn.Flatten", "nn.LeakyReLU(1e-9), nn.Flatten"))


def other_version(_, monkeypatch):
    monkeypatch.setattr("roundwise.cli.commands.reproduce.version", lambda name: "0.0.0")


@pytest.mark.parametrize("change", [other_samples, other_labels, other_code, other_version])
def test_a_journal_of_something_else_is_not_gone_on_with_and_that_is_said(two_rows, monkeypatch, change):
    with np.load("test.npz") as old:  # one sample 24 times over: whatever is changed, the float accuracy is the same
        alike = {"inputs": old["inputs"][:1].repeat(24, 0), "labels": old["labels"]}
    alike["inputs"][0, 0, 0, 0] += 1e-6
    np.savez(two_rows / "test.npz", **alike)
    resumed()
    change(two_rows, monkeypatch)
    said, lines = resumed()
    assert lines == 4
    (line,) = said
    assert has(line, 2, "runs.jsonl")


def test_a_journal_of_an_earlier_roundwise_is_not_gone_on_with(two_rows):
    row = TWO_ROWS.rows(Settings())[0]
    name = "net.py:build on test.npz (24 samples), calibrated on 24 of train.npz [0123456789ab]"
    Journal(two_rows / "runs.jsonl").add(run_key(name, row, 0), Outcome(1.0, 2.0))
    said, lines = resumed()
    assert lines == 3
    assert has(said[0], 1, "runs.jsonl")


def link(folder):
    (folder / "page.md").symlink_to("runs.jsonl")


def hard_link(folder):
    Journal(folder / "runs.jsonl").add("a run", Outcome(1.0, 2.0))
    os.link(folder / "runs.jsonl", folder / "page.md")


@pytest.mark.parametrize(
    ("make", "journal", "out"),
    [
        (None, "page.md", "page.md"),
        (None, "../{folder}/page.md", "page.md"),
        (link, "runs.jsonl", "page.md"),
        (hard_link, "runs.jsonl", "page.md"),
    ],
)
def test_a_journal_that_the_page_would_replace_is_wrong_usage(files, make, journal, out):
    if make is not None:
        make(files)
    result = invoke(*NEAREST, "--journal", journal.format(folder=files.name), "--out", out)
    assert result.exit_code == 2
    assert has(result.output, "--journal", "--out")


@pytest.mark.parametrize(
    ("journal", "fact"),
    [
        ("absent/runs.jsonl", "absent"),
        ("net.py/runs.jsonl", "net.py"),
        (".", "folder"),
        ("", "empty"),
        ("link.jsonl", "absent.jsonl"),
        ("loop.jsonl", "loop.jsonl"),
        ("/dev/null", "/dev/null"),
    ],
)
def test_a_journal_that_cannot_be_kept_is_wrong_usage(files, journal, fact):
    (files / "link.jsonl").symlink_to("absent.jsonl")
    (files / "loop.jsonl").symlink_to("loop.jsonl")
    result = invoke(*NEAREST, "--journal", journal)
    assert result.exit_code == 2
    assert has(result.output, "--journal", fact)
    assert "%" not in result.output


def test_a_journal_that_cannot_be_written_is_refused_before_anything_runs(files, monkeypatch):
    Journal(files / "runs.jsonl").add("a run", Outcome(1.0, 2.0))
    opened = type(files).open

    def refused(path, mode="r", **more):
        if "+" in mode:
            raise PermissionError(13, "Permission denied")
        return opened(path, mode, **more)

    monkeypatch.setattr(type(files), "open", refused)
    result = invoke(*NEAREST, "--journal", "runs.jsonl")
    assert result.exit_code == 1
    assert has(result.stderr, "--journal", "runs.jsonl", "Permission denied")
    assert "%" not in result.output


@pytest.mark.parametrize("table", ["table1", "table4"])
def test_a_network_without_layers_is_refused_by_every_table(files, table):
    (files / "net.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Flatten()\n")
    result = invoke("adaround", table, *NEAREST[2:], "--iterations", "1")
    assert result.exit_code == 1
    assert has(result.stderr, "layer", "linear", "convolution")


def photos(folder, *classes):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((8, 8), 40 * number + 40, "uint8")).save(folder / name / "0.png")


GREY = ("adaround", "table1", "net.py:build", "--mean", "0.5", "--std", "0.5", "--seeds", "1")


def test_class_folders_must_be_as_many_as_the_networks_classes(two_rows):
    photos(two_rows / "two", "ant", "cat")
    result = invoke(*GREY, "--data", "train.npz", "--test", "two")
    assert result.exit_code == 1
    assert has(result.stderr, 2, 3, "--classes")
    assert "%" not in result.stderr
    (two_rows / "classes.txt").write_text("ant\nbee\ncat\n")
    result = invoke(*GREY, "--data", "train.npz", "--test", "two", "--classes", "classes.txt")
    assert result.exit_code == 0, result.output


def test_calibration_and_test_folders_of_other_classes_are_refused_unless_a_list_numbers_them(two_rows):
    photos(two_rows / "images" / "train", "ant", "bee", "cat")
    photos(two_rows / "images" / "val", "ant", "bee", "dog")
    result = invoke(*GREY, "--imagenet", "images")
    assert result.exit_code == 1
    assert has(result.stderr, "'cat'")
    assert "%" not in result.stderr
    (two_rows / "classes.txt").write_text("ant\nbee\ndog\n")
    assert invoke(*GREY, "--imagenet", "images", "--classes", "classes.txt").exit_code == 0
    (two_rows / "images" / "val" / "dog").rename(two_rows / "images" / "val" / "cat")
    assert invoke(*GREY, "--imagenet", "images").exit_code == 0


def test_a_list_of_classes_and_labels_of_each_sample_exclude_each_other(files):
    (files / "classes.txt").write_text("ant\n")
    result = invoke(*NEAREST, "--classes", "classes.txt", "--labels", "classes.txt")
    assert result.exit_code == 2
    assert has(result.stderr, "--classes", "--labels")


def test_other_masks_are_other_runs(two_rows):
    (two_rows / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))\n"
    )
    masks = [classes_of(seed=seed) for seed in range(3)]
    write_voc(two_rows / "voc", masks)
    words = ["--data", "voc", "--test", "voc"]
    assert resumed(*words) == ([], 2)
    (line,), lines = resumed(*words, "--batch-size", "2")
    assert has(line, 2)
    assert lines == 2
    masks[1][:2] = 255
    palette_image(masks[1]).save(two_rows / "voc" / "SegmentationClass" / "1.0.png")
    said, lines = resumed(*words)
    assert lines == 4
    assert has(said[0], 2, "runs.jsonl")


def test_the_help_says_which_samples_an_option_is_for():
    text = " ".join(invoke("--help").output.split())
    assert any(has(part[:100], "--data") for part in text.split("--limit")[1:])
    assert has(text, "--split, --input-key and --label-key")
