"""The command line: what it says, what it writes, and how it ends."""

import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from facts import has, missing, raises
from PIL import Image
from rich.console import Console

import roundwise as rw
from roundwise import cli
from roundwise.cli.app import COMMANDS, app
from roundwise.cli.commands import evaluate as evaluate_command
from roundwise.cli.commands import quantize as quantize_command
from roundwise.cli.recipes import RecipeOptions, Setting, build_recipe, parse_bytes, parse_value, with_settings
from roundwise.cli.terminal import layer_progress, show_json
from roundwise.events import LayerFinished, LayerStarted, Plan, Planned
from roundwise.exporters import OnnxExporter
from roundwise.methods.ranges import RANGE_ESTIMATORS
from roundwise.methods.rounding import ROUNDING_SOLVERS
from roundwise.report import LayerReport

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6))

def linear():
    return nn.Linear(4, 3)

def broken():
    raise ValueError("no such dataset")
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failed(result, code, *facts):
    """Whether a run ended with this code, told these facts on stderr, and showed neither results nor a traceback."""
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert not missing(result.stderr, *facts), result.stderr
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, inputs with and without labels, images."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((24, 3, 8, 8)).astype(np.float32)
    np.save(folder / "inputs.npy", inputs)
    np.savez(folder / "labelled.npz", images=inputs, labels=rng.integers(0, 6, 24))
    np.savez(folder / "pixels.npz", images=rng.integers(0, 256, (24, 8, 8, 3), dtype=np.uint8))
    for name in ("cat", "dog"):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(3):
            image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            image.save(folder / "photos" / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def written(folder):
    """What one run of `quantize` gave: its result, and files in three formats."""
    outs = [folder / "net.rw", folder / "net.onnx"]
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--rounding", "nearest",
        *(part for out in outs for part in ("--out", out)),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def no_run(monkeypatch):
    """Make it an error to start what takes long."""

    def fail(*_, **__):
        raise AssertionError("the long run was started")

    monkeypatch.setattr(quantize_command, "quantize", fail)
    monkeypatch.setattr(quantize_command, "load_model", fail)


# ------------------------------------------------------------------------------------------------------------- help


def test_help_lists_the_commands_without_importing_them():
    code = (
        "import sys; sys.argv = ['roundwise', '--help']\n"
        "import atexit; atexit.register(lambda: print(sorted(m for m in sys.modules if 'cli.commands.' in m or "
        "m.partition('.')[0] in ('torchvision', 'timm', 'onnx', 'onnxruntime')), file=sys.stderr))\n"
        "from roundwise.cli import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"
    assert all(name in result.stdout for name in COMMANDS)
    assert "130" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_examples(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"roundwise {name} " in result.stdout
    assert "Example" in result.stdout


def test_the_help_explains_every_method_in_the_tables():
    text = " ".join(run("quantize", "--help").stdout.split())
    for table in (ROUNDING_SOLVERS, RANGE_ESTIMATORS):
        for name, kind in table.items():
            assert f"{name} {kind.__doc__.partition(chr(10))[0]}" in text


def test_the_help_shows_the_defaults_of_the_recipe():
    text = " ".join(run("quantize", "--help").stdout.split())
    for option, default in (("--bits", "4"), ("--ranges", "weight-mse"), ("--rounding", "gram-adaround")):
        assert re.search(rf"{option} (?:(?!--[a-z]).)*\[default: {default}\]", text)


def test_the_version_is_told():
    assert run("--version").stdout.strip() == f"roundwise {rw.__version__}"


def test_an_unknown_command_is_wrong_usage():
    assert failed(run("quantise"), 2, "'quantise'")


@pytest.mark.parametrize(("module", "package"), [("click", "click"), ("rich", "rich"), ("PIL", "pillow")])
def test_without_its_packages_the_command_line_says_what_to_install(monkeypatch, capsys, module, package):
    find = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert has(capsys.readouterr().err, package, 'pip install "roundwise[cli]"')


# --------------------------------------------------------------------------------------------------------- quantize


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
    narrow = replace(OnnxExporter.target, name="narrow", weight_zero_points=False)
    monkeypatch.setattr(OnnxExporter, "target", narrow)
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
    monkeypatch.setattr(OnnxExporter, "write", lambda self, model, path, check: Exported())
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


def np_file(folder, shape, name="x.npy"):
    np.save(folder / name, np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    return folder / name


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
        (("--recipe", "net.py"), ("net.py", "TOML")),
    ],
)
def test_an_impossible_recipe_ends_with_1_before_anything_runs(folder, no_run, monkeypatch, options, facts):
    monkeypatch.chdir(folder)
    assert failed(run("quantize", "net.py:build", "--data", "inputs.npy", *options), 1, *facts)


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
    assert failed(run("quantize", model, "--data", data, "--rounding", "nearest"), 1, *facts)


def test_preprocessing_cannot_be_borrowed_from_just_anything(folder):
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "photos", "--preprocess-as", "nonsense")
    assert failed(result, 1, "'nonsense'", "torchvision:NAME", "timm:NAME")


@pytest.mark.parametrize(
    ("text", "bits", "granularity"),
    [
        ("head=8", 8, rw.PerTensor()),
        ("head=8,per-channel", 8, rw.PerChannel()),
        ("head=per-group:32", 3, rw.PerGroup(32)),
        ("head= Per-Channel , 8", 8, rw.PerChannel()),
    ],
)
def test_an_override_gives_bits_or_granularity_or_both(text, bits, granularity):
    recipe = build_recipe(RecipeOptions(bits=3, granularity=rw.PerTensor(), overrides=[text]))
    assert recipe.stage(rw.Quantize).overrides["head"].weights == rw.Weights(bits=bits, granularity=granularity)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["head=4", "h*=5", "head=8"], [("h*", 5), ("head", 8)]),
        (["head=float"], [("*", 2), ("head", None)]),
        (["*=float"], [("head", 7), ("*", None)]),
        (["head=per-tensor"], [("*", 2), ("head", 7)]),
    ],
)
def test_the_last_override_comes_last_and_changes_what_was_said_of_its_layer(tmp_path, texts, expected):
    path = tmp_path / "recipe.toml"
    path.write_text("[[stages]]\nstage = 'quantize'\noverrides = {head.weights.bits = 7, '*'.weights.bits = 2}\n")
    recipe = build_recipe(RecipeOptions(file=path if len(texts) == 1 else None, overrides=texts))
    overrides = {name: one.weights for name, one in recipe.stage(rw.Quantize).overrides.items()}
    assert [(name, None if own == "float" else own.bits) for name, own in overrides.items()] == expected
    if texts == ["head=per-tensor"]:
        assert overrides["head"].granularity == rw.PerTensor()


def test_an_override_that_matches_nothing_names_the_nearest_layers(folder):
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--override", "conv=8")
    assert failed(result, 1, "'conv'", 2, "'0'", "'4'")


def test_ctrl_c_ends_with_130_and_leaves_no_file(folder, tmp_path, monkeypatch):
    real = quantize_command.quantize

    def interrupted(model, calibration, recipe, progress):
        def stop(event):
            progress(event)
            if isinstance(event, LayerFinished):
                raise KeyboardInterrupt

        return real(model, calibration, recipe, progress=stop)

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


# --------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("name", ["net.rw", "net.onnx", "net.py:build"])
def test_accuracy_is_measured_of_every_kind_of_network(written, folder, name):
    result = run("evaluate", f"{folder}/{name}", "--data", folder / "labelled.npz", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["samples"] == 24
    assert 0 <= data["accuracy"]["top1"] <= data["accuracy"]["top5"] <= 1
    assert data["comparison"] is None


@pytest.mark.parametrize("name", ["net.rw", "net.onnx"])
def test_a_result_is_compared_with_the_network_it_came_from(written, folder, name):
    common = ("evaluate", folder / name, "--against", f"{folder}/net.py:build", "--data", folder / "inputs.npy")
    data = json.loads(run(*common, "--json").stdout)
    assert data["accuracy"] is None
    assert 0.5 < data["comparison"]["same_class"] <= 1
    assert 0 < data["comparison"]["output_error"] < 0.1
    assert has(run(*common).stdout, f"{data['comparison']['same_class']:.2%}")


def test_a_program_is_evaluated(folder, tmp_path):
    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "net.pt2")
    result = run(
        "evaluate", tmp_path / "net.pt2", "--against", tmp_path / "net.pt2", "--data", np_file(tmp_path, (9, 4))
    )
    assert result.exit_code == 0, result.stderr
    assert has(result.stdout, "100.00%")


def test_a_built_in_batch_size_is_pointed_at(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    common = ("evaluate", tmp_path / "net.pt2", "--against", tmp_path / "net.pt2", "--data", np_file(tmp_path, (4, 4)))
    assert failed(run(*common), 1, "net.pt2", "float32 [4, 4]", "--batch-size")
    assert run(*common, "--batch-size", 2).exit_code == 0


class DropsAndNormalises(torch.nn.Module):
    def __init__(self, drops=True, normalises=True):
        super().__init__()
        self.dropout, self.norm = torch.nn.Dropout(0.5 if drops else 0.0), torch.nn.BatchNorm1d(4)
        self.norm.training = normalises

    def forward(self, x):
        return self.norm(self.dropout(x))


@pytest.mark.parametrize(("drops", "normalises"), [(True, False), (False, True), (True, True), (False, False)])
def test_a_program_in_training_mode_is_refused(tmp_path, drops, normalises):
    model = DropsAndNormalises(drops, normalises)
    program = torch.export.export(model, (torch.zeros(4, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    common = ("evaluate", tmp_path / "net.pt2", "--against", tmp_path / "net.pt2", "--data", np_file(tmp_path, (4, 4)))
    if drops or normalises:
        assert failed(run(*common), 1, "net.pt2", "training", drops + normalises, "model.eval()")
    else:
        assert run(*common).exit_code == 0


def test_a_network_that_draws_random_numbers_of_its_own_is_not_in_training_mode(tmp_path):
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    torch.export.save(torch.export.export(Noisy(), (torch.zeros(4, 4),)), tmp_path / "net.pt2")
    data = np_file(tmp_path, (4, 4))
    assert run("evaluate", tmp_path / "net.pt2", "--against", tmp_path / "net.pt2", "--data", data).exit_code == 0


@pytest.mark.parametrize("training", [True, False])
def test_an_onnx_file_in_training_mode_is_refused(tmp_path, training):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h = onnx.helper
    x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy")
    constants = [
        onnx.numpy_helper.from_array(np.array(value, dtype=kind), name)
        for name, value, kind in (("ratio", 0.5, np.float32), ("training", training, np.bool_))
    ]
    graph = h.make_graph([h.make_node("Dropout", ["x", "ratio", "training"], ["y"])], "net", [x], [y], constants)
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    path = tmp_path / "net.onnx"
    result = run("evaluate", path, "--against", path, "--data", np_file(tmp_path, (4, 4)))
    assert failed(result, 1, "net.onnx", "training", "Dropout") if training else not result.exit_code


def test_an_onnx_output_that_had_to_be_renamed_is_paired_with_the_networks(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = torch.nn.Linear(4, 3)\n"
        "    def forward(self, x):\n        return {'x': self.layer(x), 'a': 2 * self.layer(x)}\n"
        "def build():\n    torch.manual_seed(0)\n    return Net()\n"
    )
    data = np_file(tmp_path, (8, 4))
    options = ("--bits", 8, "--rounding", "nearest", "--out", "net.onnx")
    result = run("quantize", "same.py:build", "--data", data, *options)
    assert result.exit_code == 0, result.stderr
    result = run("evaluate", "net.onnx", "--against", "same.py:build", "--data", data, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["comparison"]["output_error"] < 1e-3


def test_the_suffix_of_a_file_may_be_in_capitals(written, folder, tmp_path):
    (tmp_path / "NET.RW").write_bytes((folder / "net.rw").read_bytes())
    result = run("evaluate", tmp_path / "NET.RW", "--data", folder / "labelled.npz")
    assert result.exit_code == 0, result.stderr


def test_a_network_that_ends_the_program_fails(tmp_path):
    (tmp_path / "ends.py").write_text(
        "import sys, torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        sys.exit(0)\n"
    )
    common = ("evaluate", f"{tmp_path}/ends.py:Net", "--against", f"{tmp_path}/ends.py:Net")
    assert failed(run(*common, "--data", np_file(tmp_path, (4, 4))), 1, "float32 [4, 4]", "SystemExit: 0")


def test_labels_in_the_data_can_be_passed_over(folder):
    common = ("evaluate", f"{folder}/net.py:build", "--against", f"{folder}/net.py:build", "--no-labels", "--json")
    for data in ("labelled.npz", "photos"):
        result = run(*common, "--data", folder / data)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["accuracy"] is None


def test_inputs_that_are_not_finite_are_named(folder, tmp_path):
    inputs = np.load(folder / "inputs.npy")
    inputs[20, 0, 0, 0] = np.nan
    np.savez(tmp_path / "x.npz", x=inputs, y=np.zeros(24, dtype=np.int64))
    result = run("evaluate", f"{folder}/net.py:build", "--data", tmp_path / "x.npz", "--batch-size", 7)
    assert failed(result, 1, 20, "NaN")


def test_labels_can_be_given_beside_the_data(written, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(["1"] * 24))
    result = run(
        "evaluate",
        folder / "net.rw",
        "--data",
        folder / "inputs.npy",
        "--labels",
        tmp_path / "labels.txt",
        "--limit",
        5,
    )
    assert result.exit_code == 0, result.stderr
    assert has(result.stdout, "samples", 5)


def test_class_folders_must_be_as_many_as_classes_unless_a_list_names_them(folder, tmp_path):
    common = ("evaluate", f"{folder}/net.py:build", "--data", folder / "photos", "--size", 8)
    assert failed(run(*common), 1, 2, 6, "--classes")
    (tmp_path / "classes.txt").write_text("bird\ncat\ncow\ndog\nemu\nfox\n")
    result = run(*common, "--classes", tmp_path / "classes.txt", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 6
    (tmp_path / "classes.txt").write_text("class\nbird\ncat\ncow\ndog\nemu\nfox\n")
    result = run(*common, "--classes", tmp_path / "classes.txt")
    assert failed(result, 1, 7, 6)


@pytest.mark.parametrize("wrapped", ["{'logits': y}", "(y,)", "(y, y.argmax(1))"])
def test_class_folders_are_counted_against_scores_however_a_network_returns_them(folder, tmp_path, wrapped):
    (tmp_path / "wrapped.py").write_text(
        f"{NET}\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.net = build()\n"
        f"    def forward(self, x):\n        y = self.net(x)\n        return {wrapped}\n"
    )
    result = run("evaluate", f"{tmp_path}/wrapped.py:Net", "--data", folder / "photos", "--size", 8)
    assert failed(result, 1, 2, 6, "--classes")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ((), ("--labels", "--against")),
        (("--no-labels",), ("--no-labels", "--against")),
        (("--no-labels", "--against", "net.rw", "--labels", "net.py"), ("--no-labels", "--labels")),
        (("--no-labels", "--against", "net.rw", "--label-key", "y"), ("--no-labels", "--label-key")),
        (("--labels", "net.py", "--classes", "net.py"), ("--classes", "--labels")),
        (("--seed", str(2**64)), ("--seed", 2**64)),
        (("--weights", "net.py"), ("net.rw", "weights")),
        (("--against-weights", "net.py"), ("--against-weights", "--against")),
        (("--against", "net.rw", "--against-weights", "net.py"), ("--against-weights", "--against")),
    ],
)
def test_wrong_usage_of_evaluate_ends_with_2(written, folder, monkeypatch, options, facts):
    monkeypatch.chdir(folder)
    assert failed(run("evaluate", "net.rw", "--data", "inputs.npy", *options), 2, *facts)


def test_a_seed_that_is_none_is_wrong_usage_of_quantize_too(folder):
    options = "--data", folder / "inputs.npy", "--seed", 2**64
    assert failed(run("quantize", f"{folder}/net.py:build", *options), 2, "--seed", 2**64)


@pytest.mark.parametrize(
    ("model", "data", "facts"),
    [
        ("absent.rw", "labelled.npz", ("absent.rw",)),
        ("absent.onnx", "labelled.npz", ("absent.onnx",)),
        ("broken.onnx", "labelled.npz", ("broken.onnx", "ONNX Runtime")),
        ("broken.rw", "labelled.npz", ("broken.rw",)),
        ("net.py:linear", "labelled.npz", ("float32 [24, 3, 8, 8]",)),
        ("net.onnx", "other.npz", ("float32 [2, 5]",)),
    ],
)
def test_what_cannot_be_evaluated_ends_with_1(written, folder, monkeypatch, model, data, facts):
    monkeypatch.chdir(folder)
    for name in ("broken.onnx", "broken.rw"):
        (folder / name).write_bytes(b"hello")
    np.savez("other.npz", x=np.zeros((2, 5), dtype=np.float32), y=np.zeros(2, dtype=np.int64))
    assert failed(run("evaluate", model, "--data", data), 1, *facts)


def test_ctrl_c_ends_an_evaluation_with_130(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_command, "evaluate", interrupted)
    assert failed(run("evaluate", f"{folder}/net.py:build", "--data", folder / "labelled.npz"), 130, "interrupted")


@pytest.mark.parametrize("module", ["click", "torch", "their_network"])
def test_ctrl_c_ends_with_130_and_one_line_while_modules_are_imported(tmp_path, module):
    (tmp_path / "net.py").write_text("def build():\n    import their_network\n")
    np.save(tmp_path / "inputs.npy", np.zeros((2, 4), dtype=np.float32))
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where tests run in the background\n"
        "class Interrupted:\n"
        "    def find_spec(name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "import roundwise.cli\n"
        "sys.meta_path.insert(0, Interrupted)\n"
        "sys.argv = ['roundwise', 'quantize', 'net.py:build', '--data', 'inputs.npy']\n"
        "roundwise.cli.main()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (130, "")
    assert re.fullmatch(r"roundwise: .*interrupted.*\n", result.stderr)


# ---------------------------------------------------------------------------------------------------------- inspect


def test_inspect_shows_layers_recipe_and_versions(written, folder):
    text = run("inspect", folder / "net.rw").stdout
    assert has(text, "checksum", f"torch {torch.__version__}", 'method = "nearest"', "conv2d")
    data = json.loads(run("inspect", folder / "net.rw", "--json").stdout)
    assert data["checksum"] == "ok"
    assert data["recipe"]["stages"][1]["rounding"] == {"method": "nearest"}
    assert len(data["report"]["stages"][1]["layers"]) == 2


def test_inspect_refuses_a_file_that_was_tampered_with(written, folder, tmp_path):
    content = bytearray((folder / "net.rw").read_bytes())
    content[-5] ^= 1
    (tmp_path / "net.rw").write_bytes(content)
    assert failed(run("inspect", tmp_path / "net.rw"), 1, "net.rw")


def test_inspect_is_for_rw_files(written, folder):
    assert failed(run("inspect", folder / "net.onnx"), 1, "net.onnx", ".rw")
    assert failed(run("inspect", folder / "absent.rw"), 2, "absent.rw")


def test_a_file_that_is_not_there_is_told_with_those_of_like_names(tmp_path, monkeypatch):
    (tmp_path / "model.rw").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "dangling.rw").symlink_to(tmp_path / "gone.rw")
    monkeypatch.chdir(tmp_path)
    said = {
        "modle.rw": ("'modle.rw'", "model.rw"),
        tmp_path / "modle.rw": (tmp_path / "model.rw",),
        "zzz": ("'zzz'", tmp_path),
        "no/zzz.rw": ("'no/zzz.rw'", "'no'"),
        "model.rw/zzz.rw": ("'model.rw/zzz.rw'", "'model.rw'"),
        "dangling.rw": ("'dangling.rw'", tmp_path / "gone.rw"),
        "models_": ("'models_'", "model.rw"),
        "": ("empty",),
        "danglin.rw": ("'danglin.rw'", tmp_path),
        "model.rw/": ("'model.rw/'", "model.rw"),
        "x" * 300: ("File name too long",),
        ".": ("directory",),
    }
    for name, facts in said.items():
        assert failed(run("inspect", name), 2, *facts)


# ---------------------------------------------------------------------------------------------------------- recipes


def test_options_change_a_recipe_file_and_leave_the_rest(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        "seed = 5\n[[stages]]\nstage = 'quantize'\nrounding = {method = 'adaround', iterations = 50}\n"
        "weights = {bits = 8, symmetric = false}\noverrides.head.weights = 'float'\n"
    )
    recipe = build_recipe(RecipeOptions(file=path, bits=3, settings=["learning_rate=0.5"], overrides=["stem.*=4"]))
    stage = recipe.stage(rw.Quantize)
    assert (recipe.seed, stage.weights.bits, stage.weights.symmetric) == (5, 3, False)
    assert stage.rounding == rw.rounding.AdaRound(iterations=50, learning_rate=0.5)
    assert list(stage.overrides) == ["head", "stem.*"]
    assert stage.overrides["head"].weights == "float"
    assert stage.overrides["stem.*"].weights == rw.Weights(bits=4, symmetric=False)


def test_no_options_are_the_default_recipe():
    assert build_recipe(RecipeOptions()) == rw.Recipe()


def test_naming_the_method_that_is_in_place_keeps_its_settings():
    assert build_recipe(RecipeOptions(rounding="gram-adaround")) == rw.Recipe()


def test_settings_of_range_estimation_have_a_prefix():
    recipe = build_recipe(RecipeOptions(settings=["ranges.candidates=7", "rounding.iterations=9"]))
    assert recipe.stage(rw.Quantize).weights.ranges == rw.ranges.WeightMSE(candidates=7)
    assert isinstance(recipe.stage(rw.Quantize).rounding, rw.rounding.GramAdaRound)
    assert recipe.stage(rw.Quantize).rounding.iterations == 9


@pytest.mark.parametrize("table", [ROUNDING_SOLVERS, RANGE_ESTIMATORS], ids=["rounding", "ranges"])
def test_every_setting_of_every_method_can_be_given_as_text(table):
    from dataclasses import fields

    for kind in table.values():
        for field in fields(kind):
            assert with_settings(kind(), [Setting(field.name, str(getattr(kind(), field.name)), "")], table) == kind()


@dataclass(frozen=True)
class Method:
    count: int = 1
    rate: float | None = 0.5
    careful: bool = True
    mode: Literal["fast", "slow"] = "fast"
    shape: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("count", "1_000", 1000), ("rate", "1e-3", 0.001), ("rate", "none", None), ("careful", "no", False),
     ("mode", "slow", "slow")],
)  # fmt: skip
def test_settings_are_read_as_the_type_of_their_field(name, text, value):
    assert getattr(with_settings(Method(), [Setting(name, text, f"{name}={text}")], {"method": Method}), name) == value


@pytest.mark.parametrize(
    ("name", "text", "facts"),
    [
        ("count", "1.5", ("'1.5'",)),
        ("rate", "high", ("'high'",)),
        ("careful", "maybe", ("'maybe'", "true", "false")),
        ("mode", "medium", ("'medium'", "fast", "slow")),
        ("shape", "1,2", ("recipe file",)),
        ("cuont", "3", ("'method'", "'cuont'", "'count'")),
    ],
)
def test_settings_of_another_type_are_refused(name, text, facts):
    with raises(rw.RecipeError, f"{name}={text}", *facts):
        with_settings(Method(), [Setting(name, text, f"{name}={text}")], {"method": Method})


def test_the_bits_of_activations_are_said_once_and_settings_are_named_as_they_were_written():
    twice = RecipeOptions(activations=8, settings=["activations.bits=4"])
    with raises(rw.RecipeError, "--set activations.bits=4", "--activations 8"):
        build_recipe(twice)
    with raises(rw.RecipeError, "--set activations.foo=1", "'activations'", "'foo'"):
        build_recipe(RecipeOptions(activations=8, settings=["activations.foo=1"]))
    changed = build_recipe(RecipeOptions(activations=8, settings=["activations.adapt_rounding=no"]))
    assert changed.stage(rw.Quantize).activations == rw.Activations(bits=8, adapt_rounding=False)


def test_rewrites_that_the_weights_ask_for_can_be_given_settings():
    settings = ["rewrites.cross-layer-equalization.relu6=keep"]
    recipe = build_recipe(RecipeOptions(granularity=rw.PerTensor(), settings=settings))
    assert recipe.stage(rw.Rewrite).methods == (rw.rewrites.CrossLayerEqualization(relu6="keep"),)
    with raises(rw.RecipeError, f"--set {settings[0]}", "--rewrite"):
        build_recipe(RecipeOptions(granularity=rw.PerChannel(), settings=settings))


def test_amounts_of_memory_have_units():
    assert [parse_bytes(text) for text in ("0", "12", "1KiB", "2 gb", "0.5 MiB")] == [0, 12, 1024, 2 * 10**9, 2**19]
    for text in ("", "GiB", "-1", "2 parsecs", "1e9"):
        with raises(ValueError, f"'{text}'"):
            parse_bytes(text)


def test_text_for_an_optional_value_may_be_none():
    assert parse_value("None", int | None) is None
    assert parse_value("4", int | None) == 4


# --------------------------------------------------------------------------------------------------------- terminal

PLAN = Plan(("first", "second"), 8, 2**20, "first", 2**10, 2**30, 90.0)
LAYER = LayerReport("first", "conv2d", (1, 2), 4, "per-channel", True, "min-max", "nearest", 0.1, 0.05, 0.25, 1.5)


def test_progress_on_a_terminal_is_a_bar_with_the_layer_and_the_time_left(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr("roundwise.cli.terminal.Console", lambda stderr: terminal)
    with layer_progress() as show:
        show(Planned(PLAN))
        show(LayerStarted("first", 0, 2))
        show(LayerFinished(LAYER, 0, 2, 75.0))
        show(LayerStarted("second", 1, 2))
    text = screen.getvalue()
    assert has(text, 2, 8, "second", "1/2", "1 minute and 15 seconds")


def test_progress_elsewhere_is_plain_lines(capsys):
    with layer_progress() as show:
        for event in (Planned(PLAN), LayerStarted("first", 0, 2), LayerFinished(LAYER, 0, 2, 75.0)):
            show(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [str(PLAN), str(LayerFinished(LAYER, 0, 2, 75.0))]


def test_json_never_holds_what_json_cannot(capsys):
    show_json({"a": float("nan"), "b": [float("inf"), (1, None)], "c": torch.float32})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, [1, None]], "c": "torch.float32"}
