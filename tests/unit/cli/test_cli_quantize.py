"""`roundwise quantize`: what it says, what it writes, and how it ends."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from commandline import failed, np_file, run
from facts import has

import roundwise as rw
from roundwise.cli.commands import quantize as quantize_command
from roundwise.events import LayerFinished
from roundwise.exporters import OnnxExporter


def test_quantize_reports_on_stdout_and_tells_its_progress_on_stderr(written, folder):
    assert "layer" in written.stdout
    assert has(written.stdout, 2, 24, f"{folder}/net.rw", f"{folder}/net.onnx")
    assert has(written.stderr, 2, 24, "[2/2]")
    assert "[2/2]" not in written.stdout


def test_quantize_writes_a_file_that_loads_and_computes(written, folder):
    quantized = rw.load(folder / "net.rw")
    assert quantized(torch.zeros(5, 3, 8, 8)).shape == (5, 6)
    assert {layer.rounding for layer in quantized.report.layers} == {"nearest"}


def test_options_reach_the_recipe(folder):
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--bits", 3, "--per-tensor",
        "--asymmetric", "--ranges", "min-max", "--rounding", "adaround",
        "--set", "iterations=3", "--set", "batch_size=4", "--override", "4=8",
        "--seed", 7, "--batch-size", 5, "--memory-budget", "1MiB", "--limit", 10, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    stage = data["recipe"]["stages"][1]
    weights, rounding = stage["weights"], stage["rounding"]
    assert (weights["bits"], weights["symmetric"]) == (3, False)
    assert weights["granularity"] == {"kind": "per-tensor"}
    assert weights["ranges"] == {"method": "min-max"}
    assert (rounding["method"], rounding["iterations"], rounding["batch_size"]) == ("adaround", 3, 4)
    assert stage["overrides"]["4"]["weights"]["bits"] == 8
    assert (data["recipe"]["seed"], data["recipe"]["batch_size"]) == (7, 5)
    assert data["recipe"]["memory_budget"] == 2**20
    assert [layer["bits"] for layer in data["report"]["stages"][1]["layers"]] == [3, 8]
    assert data["report"]["samples"] == 10
    assert data["outputs"] == []
    assert "[2/2]" in result.stderr


def test_what_a_files_target_cannot_hold_is_said_before_the_network_is_loaded(tmp_path, monkeypatch):
    narrow = replace(OnnxExporter.targets[0], name="narrow", weight_zero_points=False)
    monkeypatch.setattr(OnnxExporter, "targets", (narrow,))
    data = np_file(tmp_path, (8, 4))
    common = ("quantize", "absent.py:net", "--data", data, "--asymmetric")
    assert failed(run(*common, "--out", tmp_path / "net.onnx"), 1, "'narrow'")
    assert "narrow" not in run(*common, "--out", tmp_path / "net.rw").stderr
    assert [path.suffix for path in tmp_path.iterdir()] == [data.suffix]


def test_json_has_the_figures_of_the_files(folder, tmp_path, monkeypatch):
    class Exported:
        def as_dict(self):
            return {"path": "b.onnx", "max_difference": 1e-6}

    # The real export is in `written`, and takes seconds.
    monkeypatch.setattr(OnnxExporter, "write", lambda *_: Exported())
    result = run(
        "quantize", f"{folder}/net.py:linear", "--data", np_file(tmp_path, (8, 4)), "--rounding", "nearest", "--json",
        "--out", tmp_path / "a.rw", "--out", tmp_path / "b.onnx",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["outputs"] == [
        {"path": str(tmp_path / "a.rw"), "bytes": (tmp_path / "a.rw").stat().st_size},
        {"path": "b.onnx", "max_difference": 1e-6},
    ]
    assert data["versions"]["torch"] == str(torch.__version__)


def test_the_report_is_written_as_a_page(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    path = tmp_path / "report.html"
    result = run("quantize", "net.py:linear", "--data", np_file(tmp_path, (8, 4)), "--report", path)
    assert result.exit_code == 0, result.stderr
    assert has(result.stdout, path)
    assert has(result.stderr, "--out")
    text = path.read_text(encoding="utf-8")
    for part in ("net.py:linear", "float32 [8, 4]", "[stages.weights]"):
        assert part in text
    assert "top-1" not in text


@pytest.mark.parametrize("options", [("--label-key", "labels"), ("--labels", "labels.txt")])
def test_the_report_tells_the_accuracy_where_labels_are_given(folder, tmp_path, monkeypatch, options):
    monkeypatch.chdir(folder)
    (folder / "labels.txt").write_text("\n".join(map(str, np.load(folder / "labelled.npz")["labels"])))
    path = tmp_path / "report.html"
    common = ("net.py:build", "--data", "labelled.npz", "--json")
    result = run("quantize", *common, "--rounding", "nearest", "--bits", 8, "--report", path, *options)
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    share = json.loads(run("evaluate", *common).stdout)["accuracy"]["top1"]
    assert data["accuracy"]["top-1"]["float"] == share
    assert data["outputs"] == [{"path": str(path), "bytes": path.stat().st_size}]
    before, after = (f"{100 * data['accuracy']['top-1'][kind]:.1f} %" for kind in ("float", "quantized"))
    assert f"{before} → {after}" in path.read_text(encoding="utf-8")


def test_labels_that_do_not_fit_the_network_end_the_command_before_the_long_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    (tmp_path / "labels.txt").write_text("6\n" * 24)

    def fail(*_, **__):
        raise AssertionError("the long run was started")

    monkeypatch.setattr(quantize_command, "quantize", fail)
    options = ("--report", tmp_path / "report.html", "--labels", tmp_path / "labels.txt")
    result = run("quantize", "net.py:build", "--data", "inputs.npy", *options)
    assert failed(result, 1, "label", 6)
    assert not (tmp_path / "report.html").exists()


def test_folders_are_not_taken_for_labels_unasked(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    path = tmp_path / "report.html"
    options = ("--size", "8", "--rounding", "nearest", "--report", path)
    result = run("quantize", "net.py:build", "--data", "photos", *options)
    assert result.exit_code == 0, result.stderr
    assert "top-1" not in path.read_text(encoding="utf-8")


def test_without_an_output_it_says_that_nothing_is_kept(folder):
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--rounding", "nearest")
    assert result.exit_code == 0
    assert has(result.stderr, "--out")


def test_images_are_prepared_as_asked_and_it_is_said(folder):
    common = ("quantize", f"{folder}/net.py:build", "--rounding", "nearest", "--data")
    result = run(*common, folder / "photos", "--size", "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    assert result.exit_code == 0, result.stderr
    assert has(result.stderr, 6, 8, "bilinear", "8×8", "mean 0.5 0.5 0.5", "std 0.5 0.5 0.5")
    result = run(*common, folder / "pixels.npz")
    assert result.exit_code == 0, result.stderr
    assert has(result.stderr, "mean 0.485 0.456 0.406", "default")
    assert not has(run(*common, folder / "inputs.npy").stderr, "mean")


def test_floats_are_scaled_only_where_mean_and_std_are_given(folder, tmp_path):
    np.save(tmp_path / "x.npy", np.full((4, 3, 8, 8), 0.5, dtype=np.float32))
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", tmp_path / "x.npy", "--rounding", "nearest",
        "--mean", "0.5,0.5,0.5", "--std", "1,1,1",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert has(result.stderr, "mean 0.5 0.5 0.5", "std 1 1 1")


def test_preprocessing_of_a_named_model_can_be_borrowed(folder):
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "photos", "--rounding", "nearest",
        "--preprocess-as", "torchvision:resnet18",
    )  # fmt: skip
    if "not installed" in result.stderr:
        pytest.skip("torchvision is not installed")
    assert result.exit_code == 0, result.stderr
    assert has(result.stderr, 256, "bilinear", "224×224", "ResNet18_Weights.IMAGENET1K_V1")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--bits", "9"), ("--bits", 9)),
        (("--rounding", "magic"), ("--rounding", "'magic'", "adaround")),
        (("--per-tensor", "--per-group", "4"), ("--per-tensor", "--per-group")),
        (("--weights", "net.py", "--pretrained"), ("--weights", "--pretrained")),
        (("--data", "absent"), ("--data", "absent")),
        (("--size", "0"), ("--size", "'0'")),
        (("--mean", "1,2"), ("--mean", "'1,2'")),
        (("--memory-budget", "lots"), ("--memory-budget", "'lots'")),
        (("--device", "warp"), ("--device", "'warp'")),
        (("--device", "meta"), ("--device", "'meta'")),
        (("--device", "hpu"), ("--device", "'hpu'")),
        (("--limit", "0"), ("--limit", 0)),
        (("--out", "net.pth"), ("--out", "net.pth", ".rw", ".onnx")),
        (("--out", "absent/net.rw"), ("--out", "'absent'")),
        (("--out", "net.py/net.rw"), ("--out", "'net.py'")),
        (("--out", "net.py/deeper/net.rw"), ("--out", "'net.py'")),
        (("--out", "photos.rw"), ("--out", "photos.rw")),
        (("--out", "a.rw", "--out", "./a.rw"), ("--out", "a.rw")),
        (("--report", "report.pdf"), ("--report", "report.pdf", ".html")),
        (("--report", "absent/report.html"), ("--report", "'absent'")),
        (("--report", "photos.html"), ("--report", "photos.html")),
        (("--labels", "net.py"), ("--labels", "--report")),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_runs(folder, no_run, monkeypatch, options, facts):
    monkeypatch.chdir(folder)
    for name in ("photos.rw", "photos.html"):
        (folder / name).mkdir(exist_ok=True)
    data = () if "--data" in options else ("--data", "inputs.npy")
    assert failed(run("quantize", "net.py:build", *data, *options), 2, *facts)


@pytest.mark.parametrize("command", [("quantize",), ("evaluate",), ("reproduce", "adaround", "table1")], ids=str)
def test_weights_that_do_not_go_with_the_model_are_wrong_usage(folder, monkeypatch, command):
    monkeypatch.chdir(folder)
    places = ("--data", "labelled.npz", *(("--test", "labelled.npz") if command[0] == "reproduce" else ()))
    assert failed(run(*command, "net.py:build", *places, "--random-weights"), 2, "net.py:build", "--random-weights")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--set", "iteration=5"), ("'iteration'", "'gram-adaround'", "iterations", "learning_rate")),
        (("--set", "iterations=few"), ("--set iterations=few", "'few'")),
        (("--set", "iterations=0"), ("GramAdaRound", "iterations=0", 1)),
        (("--set", "iterations"), ("--set iterations", "NAME=VALUE")),
        (("--set", "grid.scale=1"), ("--set grid.scale=1", "'grid'", "'rounding'", "'ranges'")),
        (("--rounding", "nearest", "--set", "iterations=5"), ("--set iterations=5", "'nearest'", "'iterations'")),
        (("--override", "0=nine"), ("--override 0=nine", "'nine'", "per-tensor")),
        (("--override", "0=9"), ("--override 0=9", "bits=9", 2, 8, 16)),
        (("--override", "0"), ("--override 0", "NAME=VALUE")),
        (("--override", "0=8,nine"), ("--override 0=8,nine", "'nine'", "per-tensor")),
        (("--override", "0=8,"), ("--override 0=8,", "''", "per-tensor")),
        (("--override", "0=8,float"), ("--override 0=8,float", "float")),
        (("--override", "0=٨"), ("--override 0=٨", "'٨'", "per-tensor")),
        (("--override", "0=8,4"), ("--override 0=8,4", "bits")),
        (("--override", "0=per-tensor,per-channel"), ("--override 0=per-tensor,per-channel", "granularity")),
        (("--override", "0=4,per-group"), ("--override 0=4,per-group", "'per-group'", "per-channel")),
        (("--override", "0=4,per-group=32"), ("--override 0=4,per-group:32",)),
        (("--override", "0=per-tensor:"), ("--override 0=per-tensor:", "'per-tensor:'", "per-channel")),
        (("--override", "0=per-group:1"), ("--override 0=per-group:1", 2, 32, 128)),
    ],
)
def test_options_that_make_no_recipe_end_with_2_before_anything_runs(folder, no_run, monkeypatch, options, facts):
    monkeypatch.chdir(folder)
    assert failed(run("quantize", "net.py:build", "--data", "inputs.npy", *options), 2, *facts)


def test_a_recipe_file_that_is_none_ends_with_1_before_anything_runs(folder, no_run, monkeypatch):
    monkeypatch.chdir(folder)
    said = run("quantize", "net.py:build", "--data", "inputs.npy", "--recipe", "net.py")
    assert failed(said, 1, "net.py", "TOML")


@pytest.mark.parametrize(("option", "name"), [("--out", "net.rw"), ("--report", "page.html")])
def test_a_folder_that_takes_no_files_ends_with_1_before_anything_runs(folder, no_run, monkeypatch, option, name):
    monkeypatch.chdir(folder)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    facts = (option, name, "'.'", "Permission denied")
    assert failed(run("quantize", "net.py:build", "--data", "inputs.npy", option, name), 1, *facts)


@pytest.mark.parametrize(
    ("model", "data", "facts"),
    [
        ("net.py:absent", "inputs.npy", ("net.py", "'absent'")),
        ("net.py:broken", "inputs.npy", ("net.py:broken", "ValueError: no such dataset")),
        ("net.pt2", "inputs.npy", ("net.pt2",)),
        ("net.py:build", "net.py", ("'.py'", ".npz")),
    ],
)
def test_what_cannot_be_done_ends_with_1_and_a_message(folder, monkeypatch, model, data, facts):
    monkeypatch.chdir(folder)
    (folder / "net.pt2").write_text("no program")
    assert failed(run("quantize", model, "--data", data, "--rounding", "nearest"), 1, *facts)


def test_preprocessing_cannot_be_borrowed_from_just_anything(folder):
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "photos", "--preprocess-as", "nonsense")
    assert failed(result, 1, "'nonsense'", "torchvision:NAME", "timm:NAME")


def test_an_override_that_matches_nothing_names_the_nearest_layers(folder):
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--override", "conv=8")
    assert failed(result, 1, "'conv'", 2, "'0'", "'4'")


def test_ctrl_c_ends_with_130_and_leaves_no_file(folder, tmp_path, monkeypatch):
    real = quantize_command.quantize

    def interrupted(model, calibration, recipe, progress, **more):
        def stop(event):
            progress(event)
            if isinstance(event, LayerFinished):
                raise KeyboardInterrupt

        return real(model, calibration, recipe, progress=stop, **more)

    monkeypatch.setattr(quantize_command, "quantize", interrupted)
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--rounding", "nearest",
        "--out", tmp_path / "a.rw", "--out", tmp_path / "b.onnx",
    )  # fmt: skip
    assert failed(result, 130, "interrupted")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_file_is_written_leaves_the_earlier_one(folder, tmp_path, monkeypatch):
    (tmp_path / "a.rw").write_bytes(b"earlier")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--rounding", "nearest",
        "--out", tmp_path / "a.rw",
    )  # fmt: skip
    assert result.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["a.rw"]
    assert (tmp_path / "a.rw").read_bytes() == b"earlier"


def test_a_bug_keeps_its_traceback(folder, monkeypatch):
    def bug(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(quantize_command, "quantize", bug)
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy")
    assert isinstance(result.exception, ZeroDivisionError)


def test_dynamic_sizes_reach_the_network_and_evaluate_refuses_others(folder, tmp_path):
    common = ("quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--rounding", "nearest")
    out = tmp_path / "net.rw"
    result = run(*common, "--out", out, "--dynamic", "input:3=width")
    assert result.exit_code == 0, result.output
    (spec,) = rw.load(out).graph.inputs
    assert spec.names == {3: "width"}
    assert failed(run(*common, "--dynamic", "image:3=width"), 1, "'image'", "'input'")
    wider = ("--data", np_file(tmp_path, (4, 5, 8, 8)), "--against", out)
    assert failed(run("evaluate", out, *wider), 1, "'input'", "dimension 1", 5, 3)
