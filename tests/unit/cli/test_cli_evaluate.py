"""`roundwise evaluate`: which networks and samples it takes, what it says, and how it ends."""

import json

import numpy as np
import pytest
import torch
from commandline import failed, np_file, run
from conftest import NET
from facts import has

from roundwise.cli.commands import evaluate as evaluate_command


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


def compared(folder):
    """Options that compare a program with itself on the data that follows."""
    return "evaluate", folder / "net.pt2", "--against", folder / "net.pt2", "--trust-program", "--data"


def test_a_program_is_read_only_from_people_whom_the_user_trusts(tmp_path, monkeypatch):
    torch.export.save(torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),)), tmp_path / "net.pt2")
    data = np_file(tmp_path, (2, 4))
    options = [one for one in compared(tmp_path) if one != "--trust-program"]
    monkeypatch.setattr(torch.export, "load", None)
    assert failed(run(*options, data), 1, "net.pt2", "--trust-program")
    assert failed(run("quantize", tmp_path / "net.pt2", "--data", data), 1, "net.pt2", "--trust-program")
    table = ("reproduce", "adaround", "table4", tmp_path / "net.pt2", "--data", data, "--test", data)
    assert failed(run(*table), 1, "net.pt2", "--trust-program")


def test_a_program_is_evaluated(folder, tmp_path):
    torch.manual_seed(0)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "net.pt2")
    result = run(*compared(tmp_path), np_file(tmp_path, (9, 4)))
    assert result.exit_code == 0, result.stderr
    assert has(result.stdout, "100.00%")


def test_a_built_in_batch_size_is_pointed_at(tmp_path):
    program = torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    common = (*compared(tmp_path), np_file(tmp_path, (4, 4)))
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
    common = (*compared(tmp_path), np_file(tmp_path, (4, 4)))
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
    assert run(*compared(tmp_path), data).exit_code == 0


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


@pytest.mark.parametrize("model", ["absent.rw", "absent.onnx", "absent.pt2", "absent.py:build"])
def test_a_model_in_a_file_that_is_not_there_is_wrong_usage(folder, monkeypatch, model):
    monkeypatch.chdir(folder)
    assert failed(run("evaluate", model, "--data", "labelled.npz"), 2, model.partition(":")[0])


def test_ctrl_c_ends_an_evaluation_with_130(folder, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_command, "measure", interrupted)
    assert failed(run("evaluate", f"{folder}/net.py:build", "--data", folder / "labelled.npz"), 130, "interrupted")
