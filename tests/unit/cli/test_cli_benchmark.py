"""`roundwise benchmark`: networks timed side by side, and files that cannot be timed."""

import json

import pytest
import torch
from commandline import failed, run
from facts import has
from torch import nn

from roundwise.loading import timed

ONCE = ("--rounds", 3, "--warm-up", 0)


def test_files_of_several_kinds_are_compared_with_the_first(written, folder):
    pytest.importorskip("onnxruntime")
    data = json.loads(run("benchmark", folder / "net.onnx", folder / "net.rw", *ONCE, "--json").stdout)
    assert (data["batch_size"], data["threads"], data["rounds"]) == (1, 1, 3)
    first, *_, last = data["results"]
    assert has(first["runtime"], "ONNX Runtime")
    assert has(last["runtime"], torch.__version__)
    assert first["bytes"] == (folder / "net.onnx").stat().st_size
    assert first["speed_quartiles"] == [1.0, 1.0]
    assert first["speed"] == 1.0
    low, high = last["speed_quartiles"]
    assert 0 < low <= last["speed"] <= high
    text = run("benchmark", folder / "net.onnx", folder / "net.rw", *ONCE).stdout
    assert has(text, "net.onnx", "net.rw", "ONNX Runtime", "speed")


def test_a_missing_file_and_an_unknown_suffix_are_refused(written, folder, tmp_path):
    (tmp_path / "net.tflite").write_bytes(b"x")
    assert failed(run("benchmark", folder / "net.rw", tmp_path / "absent.onnx", *ONCE), 1, "absent.onnx")
    assert failed(run("benchmark", tmp_path / "net.tflite", *ONCE), 1, "net.tflite", ".onnx", ".xml", ".rw")
    assert failed(run("benchmark"), 2, "FILES")


def test_a_runtime_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "net.xml").write_bytes(b"x")
    monkeypatch.setattr(timed, "find_spec", lambda name: None)
    assert failed(run("benchmark", tmp_path / "net.xml", *ONCE), 1, "net.xml", "OpenVINO", "roundwise[openvino]")


def test_a_program_is_read_on_request_only(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 2).eval(), (torch.randn(3, 4),)), path)
    assert failed(run("benchmark", path, *ONCE), 1, "--trust-program")
    assert has(run("benchmark", path, "--trust-program", *ONCE).stdout, "net.pt2", "PyTorch")


def test_a_size_that_a_file_leaves_open_is_asked_for(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h = onnx.helper
    x, y = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", "width"]) for name in "xy")
    graph = h.make_graph([h.make_node("Add", ["x", "x"], ["y"])], "net", [x], [y])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    assert failed(run("benchmark", tmp_path / "net.onnx", *ONCE), 1, "'x'", "width", "--size")
    assert run("benchmark", tmp_path / "net.onnx", *ONCE, "--size", "width=5").exit_code == 0
    assert failed(run("benchmark", tmp_path / "net.onnx", *ONCE, "--size", "width"), 2, "width", "NAME=NUMBER")
