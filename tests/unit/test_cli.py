"""The command line: what it says, what it writes, and how it ends."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pytest
import torch
from click.testing import CliRunner
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


def failed(result, code, *parts):
    """Whether a run ended with this code, said all that on stderr, and showed neither results nor a traceback."""
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    for part in parts:
        assert part in " ".join(result.stderr.replace("│", " ").split()), result.stderr
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
    for default in (
        "Bits of a weight. [default: 4]",
        "[default: weight-mse]",
        "[default: gram-adaround]",
    ):
        assert default in text


def test_the_version_is_told():
    assert run("--version").stdout.strip() == f"roundwise {rw.__version__}"


def test_an_unknown_command_is_wrong_usage():
    assert failed(run("quantise"), 2, "No such command 'quantise'")


@pytest.mark.parametrize(("module", "package"), [("click", "click"), ("rich", "rich"), ("PIL", "pillow")])
def test_without_its_packages_the_command_line_says_what_to_install(monkeypatch, capsys, module, package):
    find = cli.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert f"needs {package}" in (text := capsys.readouterr().err)
    assert 'pip install "roundwise[cli]"' in text


# --------------------------------------------------------------------------------------------------------- quantize


def test_quantize_reports_on_stdout_and_tells_its_progress_on_stderr(written, folder):
    assert "layer" in written.stdout
    assert "2 layers quantized from 24 samples" in written.stdout
    assert f"written: {folder}/net.rw" in written.stdout
    assert f"written: {folder}/net.onnx" in written.stdout
    assert "plan: 2 layers, 24 samples" in written.stderr
    assert "[2/2] " in written.stderr
    assert "plan:" not in written.stdout


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
    weights, rounding = data["recipe"]["weights"], data["recipe"]["rounding"]
    assert (weights["bits"], weights["symmetric"]) == (3, False)
    assert weights["granularity"] == {"kind": "per-tensor"}
    assert weights["ranges"] == {"method": "min-max"}
    assert (rounding["method"], rounding["iterations"], rounding["batch_size"]) == ("adaround", 3, 4)
    assert data["recipe"]["overrides"]["4"]["bits"] == 8
    assert (data["recipe"]["seed"], data["recipe"]["batch_size"]) == (7, 5)
    assert data["recipe"]["memory_budget"] == 2**20
    assert [layer["bits"] for layer in data["report"]["layers"]] == [3, 8]
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
    assert f"written: {path}: " in result.stdout
    assert "the network was not written" in result.stderr
    text = path.read_text(encoding="utf-8")
    for part in ("net.py:linear", "float32 [8, 4]", "[weights]", "Error of each layer"):
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
    assert failed(result, 1, "a label is 6, but the network has 6 classes")
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
    assert "the network was not written" in result.stderr


def test_images_are_prepared_as_asked_and_it_is_said(folder):
    common = ("quantize", f"{folder}/net.py:build", "--rounding", "nearest", "--data")
    result = run(*common, folder / "photos", "--size", "8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    assert result.exit_code == 0, result.stderr
    assert "6 images" in result.stderr
    assert "shorter side to 8 (bilinear), centre 8×8, mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in result.stderr
    result = run(*common, folder / "pixels.npz")
    assert result.exit_code == 0, result.stderr
    assert "size as it is, mean 0.485 0.456 0.406" in result.stderr
    assert "the default, since the model states none" in result.stderr
    assert "images:" not in run(*common, folder / "inputs.npy").stderr


def test_floats_are_scaled_only_where_mean_and_std_are_given(folder, tmp_path):
    np.save(tmp_path / "x.npy", np.full((4, 3, 8, 8), 0.5, dtype=np.float32))
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", tmp_path / "x.npy", "--rounding", "nearest",
        "--mean", "0.5,0.5,0.5", "--std", "1,1,1",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "images: size as it is, mean 0.5 0.5 0.5, std 1 1 1" in result.stderr


def test_preprocessing_of_a_named_model_can_be_borrowed(folder):
    result = run(
        "quantize", f"{folder}/net.py:build", "--data", folder / "photos", "--rounding", "nearest",
        "--preprocess-as", "torchvision:resnet18",
    )  # fmt: skip
    if "not installed" in result.stderr:
        pytest.skip("torchvision is not installed")
    assert result.exit_code == 0, result.stderr
    assert "shorter side to 256 (bilinear), centre 224×224" in result.stderr
    assert "torchvision's ResNet18_Weights.IMAGENET1K_V1" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "9"), "'9' is not one of"),
        (("--rounding", "magic"), "'magic' is not one of 'adaround'"),
        (("--per-tensor", "--per-group", "4"), "exclude each other"),
        (("--weights", "net.py", "--pretrained"), "exclude each other"),
        (("--data", "absent"), "does not exist"),
        (("--size", "0"), "'0' is not a size"),
        (("--mean", "1,2"), "not three numbers"),
        (("--memory-budget", "lots"), "'lots' is not an amount of memory"),
        (("--device", "warp"), "'warp' is not a device that works here"),
        (("--device", "meta"), "'meta' is not a device that works here"),
        (("--device", "hpu"), "'hpu' is not a device that works here"),
        (("--limit", "0"), "0 is not in the range"),
        (("--out", "net.pth"), "a file ends in .onnx or .rw"),
        (("--out", "absent/net.rw"), "there is no folder 'absent'"),
        (("--out", "net.py/net.rw"), "'net.py' is a file, not a folder"),
        (("--out", "net.py/deeper/net.rw"), "'net.py' is a file, not a folder"),
        (("--out", "photos.rw"), "is a folder"),
        (("--out", "a.rw", "--out", "./a.rw"), "same file twice"),
        (("--report", "report.pdf"), "a file ends in .html or .htm"),
        (("--report", "absent/report.html"), "there is no folder 'absent'"),
        (("--report", "photos.html"), "is a folder"),
        (("--labels", "net.py"), "--labels goes with --report"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_runs(folder, no_run, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    for name in ("photos.rw", "photos.html"):
        (folder / name).mkdir(exist_ok=True)
    data = () if "--data" in options else ("--data", "inputs.npy")
    assert failed(run("quantize", "net.py:build", *data, *options), 2, message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--set", "iteration=5"),
            "'gram-adaround' has no setting 'iteration'; its settings are iterations, learning_rate",
        ),
        (("--set", "iterations=few"), "--set iterations=few: 'few' is not a whole number"),
        (("--set", "iterations=0"), "iterations must be at least 1"),
        (("--set", "iterations"), "expected NAME=VALUE"),
        (("--set", "grid.scale=1"), "'grid' is none of 'rounding', 'ranges'"),
        (
            ("--rounding", "nearest", "--set", "iterations=5"),
            "'nearest' has no setting 'iterations'; it has no settings",
        ),
        (("--override", "0=nine"), "--override 0=nine: 'nine' is neither a number of bits nor one of per-tensor"),
        (
            ("--override", "0=9"),
            "--override 0=9: bits=9: a code can have 2 to 8 bits, or 16, given as an int. To keep a",
        ),
        (("--override", "0"), "expected NAME=VALUE"),
        (("--override", "0=8,nine"), "'nine' is neither a number of bits nor one of"),
        (("--override", "0=8,"), "'' is neither a number of bits nor one of"),
        (("--override", "0=8,float"), "float alone, to leave the layer in float"),
        (("--override", "0=٨"), "'٨' is neither"),
        (("--override", "0=8,4"), "'8,4' gives bits twice"),
        (("--override", "0=per-tensor,per-channel"), "gives granularity twice"),
        (
            ("--override", "0=4,per-group"),
            "'per-group' is neither a number of bits nor one of per-tensor, per-channel and",
        ),
        (("--override", "0=4,per-group=32"), "write a colon before a size, --override 0=4,per-group:32."),
        (("--override", "0=per-tensor:"), "'per-tensor:' is neither"),
        (("--override", "0=per-group:1"), "at least 2; 32 to 128 are usual"),
        (("--recipe", "net.py"), "is not a TOML file"),
    ],
)
def test_an_impossible_recipe_ends_with_1_before_anything_runs(folder, no_run, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    assert failed(run("quantize", "net.py:build", "--data", "inputs.npy", *options), 1, message)


@pytest.mark.parametrize(("option", "name"), [("--out", "net.rw"), ("--report", "page.html")])
def test_a_folder_that_takes_no_files_ends_with_1_before_anything_runs(folder, no_run, monkeypatch, option, name):
    monkeypatch.chdir(folder)

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    message = f"{option} {name}: the folder '.' takes no new files (Permission denied). Choose another."
    assert failed(run("quantize", "net.py:build", "--data", "inputs.npy", option, name), 1, message)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("net.py:absent", "inputs.npy", "has no function 'absent'"),
        ("net.py:broken", "inputs.npy", "ValueError: no such dataset"),
        ("net.pt2", "inputs.npy", "there is no such file"),
        ("net.py:build", "net.py", "is not a known kind of data"),
    ],
)
def test_what_cannot_be_done_ends_with_1_and_a_message(folder, monkeypatch, model, data, message):
    monkeypatch.chdir(folder)
    assert failed(run("quantize", model, "--data", data, "--rounding", "nearest"), 1, message)


def test_preprocessing_cannot_be_borrowed_from_just_anything(folder):
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "photos", "--preprocess-as", "nonsense")
    assert failed(result, 1, "'nonsense': only torchvision:NAME and timm:NAME")


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
    assert recipe.overrides["head"] == rw.Weights(bits=bits, granularity=granularity)


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
    path.write_text('[overrides.head]\nbits = 7\n[overrides."*"]\nbits = 2\n')
    overrides = build_recipe(RecipeOptions(file=path if len(texts) == 1 else None, overrides=texts)).overrides
    assert [(name, weights and weights.bits) for name, weights in overrides.items()] == expected
    if texts == ["head=per-tensor"]:
        assert overrides["head"].granularity == rw.PerTensor()


def test_an_override_that_matches_nothing_names_the_nearest_layers(folder):
    result = run("quantize", f"{folder}/net.py:build", "--data", folder / "inputs.npy", "--override", "conv=8")
    assert failed(result, 1, "'conv' matches none of the 2 layers")


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
    text = run(*common).stdout
    assert "compared with" in text
    assert "same class" in text


def test_a_program_is_evaluated(folder, tmp_path):
    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "net.pt2")
    result = run(
        "evaluate", tmp_path / "net.pt2", "--against", tmp_path / "net.pt2", "--data", np_file(tmp_path, (9, 4))
    )
    assert result.exit_code == 0, result.stderr
    assert "same class    100.00%" in result.stdout


def test_a_built_in_batch_size_is_pointed_at(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    common = ("evaluate", tmp_path / "net.pt2", "--against", tmp_path / "net.pt2", "--data", np_file(tmp_path, (4, 4)))
    assert failed(run(*common), 1, "fails on inputs float32 [4, 4]", "--batch-size")
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
        message = f"({drops + normalises} operations)"
        assert failed(run(*common), 1, "was exported in training mode", message, "after model.eval()")
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
    assert (
        failed(result, 1, "net.onnx was exported in training mode: it has Dropout")
        if training
        else not result.exit_code
    )


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
    assert failed(run(*common, "--data", np_file(tmp_path, (4, 4))), 1, "fails on inputs float32 [4, 4]: SystemExit: 0")


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
    assert failed(result, 1, "sample 20 contains NaN")


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
    assert "samples  5" in result.stdout


def test_class_folders_must_be_as_many_as_classes_unless_a_list_names_them(folder, tmp_path):
    common = ("evaluate", f"{folder}/net.py:build", "--data", folder / "photos", "--size", 8)
    assert failed(run(*common), 1, "2 folders, one per class, but the network has 6 classes", "--classes")
    (tmp_path / "classes.txt").write_text("bird\ncat\ncow\ndog\nemu\nfox\n")
    result = run(*common, "--classes", tmp_path / "classes.txt", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["samples"] == 6
    (tmp_path / "classes.txt").write_text("class\nbird\ncat\ncow\ndog\nemu\nfox\n")
    result = run(*common, "--classes", tmp_path / "classes.txt")
    assert failed(result, 1, "the list of classes has 7 lines, but the network has 6 classes")


@pytest.mark.parametrize("wrapped", ["{'logits': y}", "(y,)", "(y, y.argmax(1))"])
def test_class_folders_are_counted_against_scores_however_a_network_returns_them(folder, tmp_path, wrapped):
    (tmp_path / "wrapped.py").write_text(
        f"{NET}\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.net = build()\n"
        f"    def forward(self, x):\n        y = self.net(x)\n        return {wrapped}\n"
    )
    result = run("evaluate", f"{tmp_path}/wrapped.py:Net", "--data", folder / "photos", "--size", 8)
    assert failed(result, 1, "2 folders, one per class, but the network has 6 classes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is nothing to measure"),
        (("--no-labels",), "--no-labels goes with --against"),
        (("--no-labels", "--against", "net.rw", "--labels", "net.py"), "--no-labels contradicts --labels"),
        (("--no-labels", "--against", "net.rw", "--label-key", "y"), "--no-labels contradicts --labels"),
        (("--labels", "net.py", "--classes", "net.py"), "--classes says what class a folder is"),
        (("--seed", str(2**64)), "is no seed"),
        (("--weights", "net.py"), "the weights are in the file"),
        (("--against-weights", "net.py"), "needs --against"),
        (("--against", "net.rw", "--against-weights", "net.py"), "needs --against"),
    ],
)
def test_wrong_usage_of_evaluate_ends_with_2(written, folder, monkeypatch, options, message):
    monkeypatch.chdir(folder)
    assert failed(run("evaluate", "net.rw", "--data", "inputs.npy", *options), 2, message)


def test_a_seed_that_is_none_is_wrong_usage_of_quantize_too(folder):
    options = "--data", folder / "inputs.npy", "--seed", 2**64
    assert failed(run("quantize", f"{folder}/net.py:build", *options), 2, "is no seed")


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ("absent.rw", "labelled.npz", "there is no such file"),
        ("absent.onnx", "labelled.npz", "there is no such file"),
        ("broken.onnx", "labelled.npz", "cannot be loaded by ONNX Runtime"),
        ("broken.rw", "labelled.npz", "broken.rw"),
        ("net.py:linear", "labelled.npz", "fails on inputs float32 [24, 3, 8, 8]"),
        ("net.onnx", "other.npz", "fails on inputs float32 [2, 5]"),
    ],
)
def test_what_cannot_be_evaluated_ends_with_1(written, folder, monkeypatch, model, data, message):
    monkeypatch.chdir(folder)
    for name in ("broken.onnx", "broken.rw"):
        (folder / name).write_bytes(b"hello")
    np.savez("other.npz", x=np.zeros((2, 5), dtype=np.float32), y=np.zeros(2, dtype=np.int64))
    assert failed(run("evaluate", model, "--data", data), 1, message)


def test_ctrl_c_ends_an_evaluation_with_130(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_command, "evaluate", interrupted)
    assert failed(run("evaluate", f"{folder}/net.py:build", "--data", folder / "labelled.npz"), 130, "interrupted")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("click", "roundwise: interrupted before anything was done\n"),
        ("torch", "roundwise: interrupted before anything was done\n"),
        (
            "their_network",
            "roundwise: interrupted; files that were not finished are not there, or as they were before\n",
        ),
    ],
)
def test_ctrl_c_ends_with_130_and_one_line_while_modules_are_imported(tmp_path, module, message):
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
    assert (result.returncode, result.stdout, result.stderr) == (130, "", message)


# ---------------------------------------------------------------------------------------------------------- inspect


def test_inspect_shows_layers_recipe_and_versions(written, folder):
    text = run("inspect", folder / "net.rw").stdout
    assert "checksum ok" in text
    assert f"torch {torch.__version__}" in text
    assert "rounding.method = nearest" in text
    assert "conv2d" in text
    data = json.loads(run("inspect", folder / "net.rw", "--json").stdout)
    assert data["checksum"] == "ok"
    assert data["recipe"]["rounding"] == {"method": "nearest"}
    assert len(data["report"]["layers"]) == 2


def test_inspect_refuses_a_file_that_was_tampered_with(written, folder, tmp_path):
    content = bytearray((folder / "net.rw").read_bytes())
    content[-5] ^= 1
    (tmp_path / "net.rw").write_bytes(content)
    assert failed(run("inspect", tmp_path / "net.rw"), 1, "net.rw")


def test_inspect_is_for_rw_files(written, folder):
    assert failed(run("inspect", folder / "net.onnx"), 1, "is not a .rw file")
    assert failed(run("inspect", folder / "absent.rw"), 2, "does not exist")


def test_a_file_that_is_not_there_is_told_with_those_of_like_names(tmp_path, monkeypatch):
    (tmp_path / "model.rw").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "dangling.rw").symlink_to(tmp_path / "gone.rw")
    monkeypatch.chdir(tmp_path)
    said = {
        "modle.rw": "'modle.rw' does not exist. Did you mean model.rw?",
        tmp_path / "modle.rw": f"Did you mean {tmp_path / 'model.rw'}?",
        "zzz": f"'zzz' does not exist. Names without a leading / begin in {tmp_path}.",
        "no/zzz.rw": "'no/zzz.rw' does not exist, and neither does the folder 'no'.",
        "model.rw/zzz.rw": "'model.rw/zzz.rw' does not exist: 'model.rw' is a file, not a folder.",
        "dangling.rw": f"'dangling.rw' does not exist: it is a link to '{tmp_path / 'gone.rw'}', which does not.",
        "models_": "'models_' does not exist. Did you mean model.rw?",
        "": "the name is empty.",
        "danglin.rw": f"'danglin.rw' does not exist. Names without a leading / begin in {tmp_path}.",
        "model.rw/": "'model.rw/' does not exist. Did you mean model.rw?",
        "x" * 300: "cannot be read: File name too long.",
        ".": "is a directory",
    }
    for name, message in said.items():
        assert failed(run("inspect", name), 2, message)


# ---------------------------------------------------------------------------------------------------------- recipes


def test_options_change_a_recipe_file_and_leave_the_rest(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        "seed = 5\n[weights]\nbits = 8\nsymmetric = false\n[rounding]\nmethod = 'adaround'\niterations = 50\n"
        "[overrides.head]\nfloat = true\n"
    )
    recipe = build_recipe(RecipeOptions(file=path, bits=3, settings=["learning_rate=0.5"], overrides=["stem.*=4"]))
    assert (recipe.seed, recipe.weights.bits, recipe.weights.symmetric) == (5, 3, False)
    assert recipe.rounding == rw.rounding.AdaRound(iterations=50, learning_rate=0.5)
    assert list(recipe.overrides) == ["head", "stem.*"]
    assert recipe.overrides["head"] is None
    assert recipe.overrides["stem.*"] == rw.Weights(bits=4, symmetric=False)


def test_no_options_are_the_default_recipe():
    assert build_recipe(RecipeOptions()) == rw.Recipe()


def test_naming_the_method_that_is_in_place_keeps_its_settings():
    assert build_recipe(RecipeOptions(rounding="gram-adaround")) == rw.Recipe()


def test_settings_of_range_estimation_have_a_prefix():
    recipe = build_recipe(RecipeOptions(settings=["ranges.candidates=7", "rounding.iterations=9"]))
    assert recipe.weights.ranges == rw.ranges.WeightMSE(candidates=7)
    assert isinstance(recipe.rounding, rw.rounding.GramAdaRound)
    assert recipe.rounding.iterations == 9


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
    ("name", "text", "message"),
    [
        ("count", "1.5", "'1.5' is not a whole number"),
        ("rate", "high", "'high' is not one of"),
        ("careful", "maybe", "neither true nor false"),
        ("mode", "medium", "not one of fast, slow"),
        ("shape", "1,2", "write it into a recipe file"),
        ("cuont", "3", "'method' has no setting 'cuont'; its settings are count, .*Did you mean 'count'"),
    ],
)
def test_settings_of_another_type_are_refused(name, text, message):
    with pytest.raises(rw.RecipeError, match=message):
        with_settings(Method(), [Setting(name, text, f"{name}={text}")], {"method": Method})


def test_the_bits_of_activations_are_said_once_and_settings_are_named_as_they_were_written():
    twice = RecipeOptions(activations=8, settings=["activations.bits=4"])
    with pytest.raises(rw.RecipeError, match=r"--set activations.bits=4: --activations 8 says the bits already"):
        build_recipe(twice)
    with pytest.raises(rw.RecipeError, match=r"--set activations.foo=1: 'activations' has no setting 'foo'"):
        build_recipe(RecipeOptions(activations=8, settings=["activations.foo=1"]))
    changed = build_recipe(RecipeOptions(activations=8, settings=["activations.adapt_rounding=no"]))
    assert changed.activations == rw.Activations(bits=8, adapt_rounding=False)


def test_rewrites_that_the_weights_ask_for_can_be_given_settings():
    settings = ["rewrites.cross-layer-equalization.relu6=keep"]
    recipe = build_recipe(RecipeOptions(granularity=rw.PerTensor(), settings=settings))
    assert recipe.rewrites == (rw.rewrites.CrossLayerEqualization(relu6="keep"),)
    with pytest.raises(rw.RecipeError, match="none of the rewrites"):
        build_recipe(RecipeOptions(granularity=rw.PerChannel(), settings=settings))


def test_amounts_of_memory_have_units():
    assert [parse_bytes(text) for text in ("0", "12", "1KiB", "2 gb", "0.5 MiB")] == [0, 12, 1024, 2 * 10**9, 2**19]
    for text in ("", "GiB", "-1", "2 parsecs", "1e9"):
        with pytest.raises(ValueError, match="not an amount of memory"):
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
    assert "plan: 2 layers, 8 samples" in text
    assert "second" in text
    assert "1/2" in text
    assert "1 min 15 s left" in text


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
