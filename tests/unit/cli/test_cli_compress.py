"""`roundwise compress`: what it does, says and writes, and how it ends."""

import json
import math

import numpy as np
import pytest
import torch
from commandline import failed, run
from facts import has

import roundwise as rw
from roundwise.runtimes.layer_times import LayerTimes

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 6)
    return nn.Sequential(*layers)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("compress")
    (place / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((24, 3, 6, 6)).astype(np.float32)
    np.savez(place / "labelled.npz", images=inputs, labels=rng.integers(0, 6, 24))
    return place


def compress(place, *options, **more):
    return run("compress", f"{place}/net.py:build", "--data", place / "labelled.npz", *options, **more)


def test_it_writes_files_and_tells_what_is_left(place, tmp_path):
    out, page = tmp_path / "small.rw", tmp_path / "small.html"
    result = compress(place, "--macs", 0.7, "--multiple", 4, "--out", out, "--report", page, "--label-key", "labels")
    assert result.exit_code == 0, result.stderr
    model = rw.load(out)
    assert model(torch.zeros(5, 3, 6, 6)).shape == (5, 6)
    before, after = model.report.stages[-1].macs
    assert after <= 0.7 * before
    assert has(result.stdout, before, after, out, page, "top-1")
    shown = run("inspect", out)
    assert has(shown.stdout, before, after, "spatial-svd")


def test_options_reach_the_recipe(place):
    result = compress(
        place, "--parameters", 0.8, "--method", "spatial-svd", "--method", "weight-svd", "--choice", "same-ratio",
        "--multiple", 2, "--keep", "5", "--set", "spatial-svd.rounds=1", "--set", "weight-svd.kernel=last", "--seed", 3,
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    stage = data["recipe"]["stages"][-1]
    spatial, weight = stage["methods"]
    assert spatial == {"method": "spatial-svd", "rounds": 1}
    assert (weight["method"], weight["kernel"]) == ("weight-svd", "last")
    assert (stage["parameters"], stage["choice"], stage["multiple"], stage["keep"]) == (
        0.8, {"method": "same-ratio"}, 2, ["5"],
    )  # fmt: skip
    assert data["recipe"]["seed"] == 3
    entries = {one["name"]: one for one in data["report"]["stages"][-1]["compressed"]}
    assert not entries["5"]["method"]


def test_a_budget_of_time_tells_the_time_of_the_whole_network(place, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(LayerTimes, "seconds", lambda _, inputs, layers: sum(math.prod(one.weight) for one in layers))
    result = compress(place, "--latency", 0.8, "--multiple", 4, "--report", tmp_path / "small.html")
    assert result.exit_code == 0, result.stderr
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("latency:"))
    assert has(line, "ms", "ONNX Runtime", "one sample")
    assert line.removeprefix("latency: ") in (tmp_path / "small.html").read_text()


def test_a_recipe_file_is_run_and_changed(place, tmp_path):
    rw.Recipe((rw.Compress(macs=0.9, multiple=2), rw.Quantize(rw.Weights(bits=8)))).to_toml(tmp_path / "recipe.toml")
    result = compress(place, "--recipe", tmp_path / "recipe.toml", "--macs", 0.7, "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert [stage["stage"] for stage in data["recipe"]["stages"]] == ["compress", "rewrite", "quantize"]
    assert (data["recipe"]["stages"][0]["macs"], data["recipe"]["stages"][0]["multiple"]) == (0.7, 2)
    assert data["report"]["stages"][2]["layers"]


@pytest.mark.parametrize(
    ("options", "code", "facts"),
    [
        ((), 2, ("--macs", "--parameters")),
        (("--macs", 1.5), 2, ("macs=1.5",)),
        (("--macs", 0.5, "--parameters", 0.5), 2, ("macs=0.5", "parameters=0.5")),
        (("--macs", 0.5, "--method", "spatial-sdv"), 2, ("spatial-sdv", "spatial-svd")),
        (("--macs", 0.5, "--set", "gptq.ridge=1"), 2, ("gptq",)),
        (("--macs", 0.5, "--method", "weight-svd", "--set", "spatial-svd.rounds=1"), 2, ("spatial-svd",)),
        (("--macs", 0.01), 1, ("macs=0.01", 8)),
    ],
)
def test_bad_options_are_explained(place, options, code, facts):
    assert failed(compress(place, *options), code, *facts)


def test_a_recipe_without_compression_is_refused(place, tmp_path):
    rw.Recipe().to_toml(tmp_path / "recipe.toml")
    assert failed(compress(place, "--recipe", tmp_path / "recipe.toml"), 2, "Compress", "Quantize")


def test_sizes_are_chosen_by_accuracy_on_the_labels_of_the_data(place):
    result = compress(place, "--macs", 0.7, "--multiple", 2, "--choice", "equal-accuracy-loss", "--label-key", "labels")
    assert result.exit_code == 0, result.stderr
    assert has(result.stderr, "[1/", "metric")
    assert "metric" in result.stdout


def test_a_choice_by_accuracy_needs_labels(place, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((8, 3, 6, 6), np.float32))
    options = "--macs", 0.7, "--choice", "equal-accuracy-loss"
    result = run("compress", f"{place}/net.py:build", "--data", tmp_path / "images.npy", *options)
    assert failed(result, 2, "--labels", "equal-accuracy-loss")
    result = run("compress", f"{place}/net.py:build", "--data-free", "--input-size", "3x6x6", *options)
    assert failed(result, 2, "--data-free", "equal-accuracy-loss")


def test_the_weights_alone_will_do(place, tmp_path):
    options = "--data-free", "--input-size", "3x6x6", "--macs", 0.7, "--multiple", 4, "--out", tmp_path / "small.rw"
    result = run("compress", f"{place}/net.py:build", *options)
    assert result.exit_code == 0, result.stderr
    model = rw.load(tmp_path / "small.rw")
    before, after = model.report.stages[-1].macs
    assert after <= 0.7 * before
    assert model(torch.zeros(2, 3, 6, 6)).shape == (2, 6)


def test_no_data_and_data_together_are_refused(place):
    assert failed(compress(place, "--data-free", "--macs", 0.7), 2, "--data-free", "--data")
    assert failed(run("compress", f"{place}/net.py:build", "--macs", 0.7), 2, "--data", "--data-free")
