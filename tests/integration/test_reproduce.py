"""`roundwise reproduce`: a paper's table on a network of one's own."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from roundwise.cli.app import app
from roundwise.errors import FileFormatError, RecipeError
from roundwise.reproduction import PAPERS, Settings, Study, page, run
from roundwise.reproduction.study import first_layer

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
    results = run(study(), TABLES[table], few)
    text = page(study(), TABLES[table], few, results, "roundwise reproduce …", 100.0)
    assert [result.row.name for result in results] == [row.name for row in rows]
    assert all(len(result.scores) == (2 if result.row.runs is None else 1) for result in results)
    assert all(f"| {row.name} | {row.published} |" in text for row in rows)


def test_a_journal_is_gone_on_with_and_its_runs_are_not_done_again(tmp_path):
    journal, told = tmp_path / "runs.jsonl", []
    few = Settings(bits=3, iterations=2, seeds=1)
    first = run(study(), TABLES["table6"], few, journal=journal, tell=told.append)
    assert len(told) == len(journal.read_text().splitlines()) == 4
    again = run(study(), TABLES["table6"], Settings(bits=3, iterations=2, seeds=2), journal=journal, tell=told.append)
    assert len(told) == 6  # two rows have chance in them, and a second seed
    assert [result.scores[0] for result in again] == [result.scores[0] for result in first]


def test_another_setting_is_another_run(tmp_path):
    journal, told = tmp_path / "runs.jsonl", []
    for bits in (3, 2):
        run(study(), TABLES["table6"], Settings(bits=bits, iterations=2, seeds=1), journal=journal, tell=told.append)
    assert len(told) == 8


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"run": 3}\n')
    with pytest.raises(FileFormatError, match="no journal"):
        run(study(), TABLES["table6"], Settings(iterations=2, seeds=1), journal=tmp_path / "runs.jsonl")


@pytest.mark.parametrize("wrong", [{"bits": 9}, {"iterations": 0}, {"seeds": 0}, {"seeds": 1.5}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(RecipeError):
        Settings(**wrong)


def test_the_first_layer_is_the_one_that_runs_first():
    assert first_layer(study()) == "0"


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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["adaround", "table99", "net.py:build", "--data", "train.npz", "--test", "test.npz"], "there are table1"),
        (["adaround", "table6", "net.py:build", "--data", "train.npz"], "--data and --test"),
        (["adaround", "table6", "net.py:build", "--imagenet", ".", "--test", "test.npz"], "stands for"),
        (["adaround", "table6", "net.py:build", "--imagenet", "."], "no folder"),
        (["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "bare.npz"], "neither labels nor"),
        (["adaround", "table6", "net.py:build", "--data", "train.npz", "--test", "test.npz", "--out", "x.txt"], ".md"),
    ],
)
def test_what_cannot_work_is_said_before_anything_runs(files, words, said):
    result = invoke(*words)
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.output.split())
    assert not list(files.glob("*.md"))
