"""The demonstration and the example do what they say."""

import io
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from facts import has

import roundwise as rw

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("onnxruntime")

from rich.console import Console

from roundwise.cli.commands import demo

EXAMPLES = [  # those that train need other packages, and have tests of their own (test_loops.py)
    path
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
    if not path.name.startswith("train_with_")
]


def test_the_digits_are_split_the_same_way_every_time():
    one, two = demo.load_digits(), demo.load_digits()
    assert torch.equal(one.train_images, two.train_images)
    assert one.train_images.shape == (1297, 1, 8, 8)
    assert one.test_images.shape == (500, 1, 8, 8)
    assert 0 <= one.test_images.min() < one.test_images.max() <= 1


def test_the_next_steps_can_be_copied_into_the_shell_that_ran_the_demo(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [".venv/bin/roundwise", "demo"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo.program() == ".venv/bin/roundwise"
    (tmp_path / "roundwise").write_text("")
    (tmp_path / "roundwise").chmod(0o755)
    assert demo.program() == "roundwise"


def test_the_sentence_is_about_the_bits_where_the_rounding_matters_most():
    rows = [demo.Row(4, 0.97, 0.98, 1.0), demo.Row(3, 0.50, 0.96, 1.0), demo.Row(2, 0.10, 0.30, 1.0)]
    sentence = demo.meaning(0.98, rows)
    assert has(sentence, 3, "48.0", "2.0")
    assert not has(sentence, 2)


@pytest.mark.slow
def test_the_demo_trains_quantizes_compares_and_deploys(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "EPOCHS", 2)
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    screen = io.StringIO()
    demo.run(tmp_path / "new" / "folder", Console(file=screen, width=120))
    shown = screen.getvalue()

    assert re.findall(r"│ (\d) bits +│", shown) == ["4", "3", "2"]
    assert re.search(r"ONNX Runtime.* [\d.]+% .*\d+ of 500", " ".join(shown.split()))
    network = rw.load(tmp_path / "new" / "folder" / "digits.rw")
    assert {layer.bits for layer in network.report.layers} == {4}
    assert (tmp_path / "new" / "folder" / "digits.onnx").exists()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_is(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out
    assert {path.suffix for path in tmp_path.iterdir()} == {".rw", ".onnx"}
