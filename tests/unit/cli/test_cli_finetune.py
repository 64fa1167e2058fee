"""`roundwise finetune`: what it trains, what it says and writes, and how it ends."""

import json

import numpy as np
import pytest
import torch
from commandline import failed, run
from facts import has

import roundwise as rw
from roundwise.cli.commands import finetune as finetune_command
from roundwise.cli.training import TrainingSamples
from roundwise.data.dataset import DataOptions, load_data
from roundwise.data.preprocessing import Preprocessing


def train(folder, *options, data="labelled.npz", width=80):
    """Run the command with everything small."""
    common = ("finetune", f"{folder}/net.py:build", "--data", folder / data, "--rounding", "nearest", "--epochs", 2)
    return run(*common, "--batch-size", 8, *options, width=width)


def test_it_trains_tells_its_progress_and_writes_files(folder, tmp_path):
    out, page = tmp_path / "net.rw", tmp_path / "net.html"
    result = train(folder, "--bits", 3, "--activations", 3, "--out", out, "--report", page)
    assert result.exit_code == 0, result.stderr
    assert has(result.stderr, "before training", "[2/2]", "accuracy")
    assert has(result.stdout, out, page)
    model = rw.load(out)
    assert model(torch.zeros(5, 3, 8, 8)).shape == (5, 6)
    assert [epoch.epoch for epoch in model.report.stages[-1].epochs] == [0, 1, 2]
    assert {layer.bits for layer in model.report.layers} == {3}
    assert {activation.bits for activation in model.report.activations} == {3}


def test_options_reach_the_recipe(folder, tmp_path):
    result = train(
        folder, "--learning-rate", 0.02, "--label-weight", 0.5, "--only", "scales,biases", "--training", "lsq",
        "--set", "finetune.optimizer=sgd", "--set", "finetune.quantization.scales_gradients=no",
        "--calibration", folder / "inputs.npy", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    stage = data["recipe"]["stages"][-1]
    assert stage["stage"] == "finetune"
    assert (stage["epochs"], stage["learning_rate"], stage["labels"], stage["batch_size"]) == (2, 0.02, 0.5, 8)
    assert (stage["only"], stage["optimizer"]) == (["scales", "biases"], "sgd")
    assert stage["quantization"] == {"method": "lsq", "scales_gradients": False}
    assert data["report"]["samples"] == 24
    assert data["report"]["stages"][-1]["epochs"][0]["accuracy"] is not None
    assert "calibration: " in result.stderr


def test_a_recipe_file_with_training_is_run_and_changed(folder, tmp_path):
    stages = (rw.Quantize(rw.Weights(bits=2), rw.rounding.Nearest()), rw.Finetune(epochs=7, optimizer="sgd"))
    rw.Recipe(stages).to_toml(tmp_path / "recipe.toml")
    result = train(folder, "--recipe", tmp_path / "recipe.toml", "--override", "4=8", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    stage = data["recipe"]["stages"][-1]
    assert (stage["epochs"], stage["optimizer"]) == (2, "sgd")
    assert [layer["bits"] for layer in data["report"]["stages"][1]["layers"]] == [2, 8]


def test_the_same_command_goes_on_after_it_was_killed(folder, tmp_path, monkeypatch):
    options = ("--bits", 2, "--journal", tmp_path / "run", "--json")
    real = finetune_command.finetune

    def interrupted(*args, progress, **settings):
        def stop(event):
            progress(event)
            if str(event).startswith("[1/2] loss"):
                raise KeyboardInterrupt

        return real(*args, progress=stop, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(finetune_command, "finetune", interrupted)
        assert train(folder, *options).exit_code == 130
    again = train(folder, *options)
    assert again.exit_code == 0, again.stderr
    assert "[1/2]" not in again.stderr.replace("[1/2] layer", "")
    assert "[2/2]" in again.stderr
    whole = train(folder, "--bits", 2, "--json")
    ends = [json.loads(result.stdout)["report"]["stages"][-1]["epochs"] for result in (again, whole)]
    assert ends[0] == ends[1]


def test_a_journal_of_another_recipe_is_refused(folder, tmp_path):
    assert train(folder, "--journal", tmp_path / "run").exit_code == 0
    result = train(folder, "--journal", tmp_path / "run", "--learning-rate", 0.5)
    assert failed(result, 1, tmp_path / "run", "recipe")


def test_labels_that_are_asked_for_and_missing_are_told_before_the_run(folder, monkeypatch):
    monkeypatch.setattr(finetune_command, "finetune", None)
    result = train(folder, "--label-weight", 0.3, data="inputs.npy")
    assert failed(result, 2, 0.3, folder / "inputs.npy", "--labels", "--label-weight")


def test_folders_with_another_number_of_classes_are_told_before_the_run(folder, monkeypatch):
    monkeypatch.setattr(finetune_command, "finetune", None)
    result = train(folder, "--label-weight", 0.3, "--size", 8, data="photos")
    assert failed(result, 1, 2, 6)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--only", "scale"), ("'scale'", "scales")),
        (("--learning-rate", 0), ("learning_rate=0.0",)),
        (("--label-weight", 2), ("labels=2.0",)),
        (("--journal", "net.py"), ("net.py", "folder")),
        (("--training", "lsq+"), ("'lsq+'", "lsq-plus")),
        (("--set", "finetune.epoch=3"), ("'epoch'", "'epochs'")),
        (("--out", "net.pdf"), ("net.pdf", ".rw", ".onnx")),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_runs(folder, monkeypatch, options, facts):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(finetune_command, "finetune", None)
    assert failed(train(folder, *options), 2, *facts)


def test_without_data_it_is_wrong_usage(folder):
    assert failed(run("finetune", f"{folder}/net.py:build"), 2, "--data")


def test_quantize_takes_a_recipe_with_training_and_says_where_its_settings_go(folder, tmp_path):
    path = folder / "inputs.npy"
    result = run("quantize", f"{folder}/net.py:build", "--data", path, "--set", "finetune.epochs=3")
    assert failed(result, 2, "roundwise finetune")
    (tmp_path / "r.toml").write_text(
        '[[stages]]\nstage = "quantize"\nrounding = "nearest"\n[[stages]]\nstage = "finetune"\nepochs = 1\n'
    )
    result = run("quantize", f"{folder}/net.py:build", "--data", path, "--recipe", tmp_path / "r.toml", "--bits", 3)
    assert result.exit_code == 0, result.stderr


def test_samples_of_files_are_a_data_set_with_labels_where_there_are_any(folder):
    images = load_data(folder / "photos", DataOptions(preprocessing=Preprocessing(crop=(8, 8)), limit=4))
    samples = TrainingSamples(images)
    assert len(samples) == 4
    (first, label), *_ = samples.__getitems__([2, 3])
    assert (tuple(first.shape), int(label)) == ((3, 8, 8), int(images.labels[2]))
    alone = TrainingSamples(load_data(folder / "inputs.npy", DataOptions()))
    np.testing.assert_array_equal(alone[1], np.load(folder / "inputs.npy")[1])
