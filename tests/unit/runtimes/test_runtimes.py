"""Runtimes load, run and time files, and say what is wrong in words."""

import sys

import numpy as np
import pytest

import roundwise as rw
from roundwise.runtimes import (
    RUNTIMES,
    FileInput,
    OnnxRuntime,
    OpenFile,
    Timing,
    runtime_for,
    time_alternately,
    time_file,
)


@pytest.fixture
def file(tmp_path):
    """y = x + x and z = x · x."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h = onnx.helper
    x, y, z = (h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in "xyz")
    nodes = [h.make_node("Add", ["x", "x"], ["y"]), h.make_node("Mul", ["x", "x"], ["z"])]
    graph = h.make_graph(nodes, "net", [x], [y, z])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.mark.parametrize(
    "runtime",
    [
        OnnxRuntime(),
        OnnxRuntime(optimize=False),
        OnnxRuntime(threads=1),
        OnnxRuntime(entries={"session.set_denormal_as_zero": "1"}),
    ],
)
def test_a_file_runs_on_arrays_under_all_settings(file, runtime):
    opened = runtime.open(file)
    assert (list(opened.inputs), list(opened.outputs)) == (["x"], ["y", "z"])
    x = np.array([[1, 2, 3]], np.float32)
    y, z = opened.run({"x": x})
    assert np.array_equal(y, 2 * x)
    assert np.array_equal(z, x**2)


def test_a_file_is_found_by_its_suffix(tmp_path):
    assert runtime_for(tmp_path / "NET.ONNX") is OnnxRuntime
    assert runtime_for(tmp_path / "net.rw") is None
    for runtime in RUNTIMES.values():
        assert runtime.title
        assert all(suffix == suffix.lower() for suffix in runtime.suffixes)


def test_inputs_that_the_network_does_not_take_are_an_error(file):
    with pytest.raises(rw.InferenceError, match=r"net\.onnx.*x float32 \[1, 4\]"):
        OnnxRuntime().open(file).run({"x": np.zeros((1, 4), np.float32)})
    with pytest.raises(rw.InferenceError, match=r"net\.onnx.*no inputs"):
        OnnxRuntime().open(file).run({})


def test_a_file_that_is_no_network_is_an_error(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    for name in ("broken.onnx", "missing.onnx"):
        with pytest.raises(rw.InferenceError, match=rf"{name} cannot be loaded by ONNX Runtime \d"):
            OnnxRuntime().open(tmp_path / name)


def test_a_runtime_that_is_not_installed_is_an_error_that_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for use in (lambda: OnnxRuntime().version, lambda: OnnxRuntime().open(tmp_path / "net.onnx")):
        with pytest.raises(rw.InferenceError, match=r'not installed.*pip install "roundwise\[onnx\]"'):
            use()


class Counted(OpenFile):
    """Counts its runs."""

    inputs, outputs, details, runs = (), (), (), 0

    def run(self, inputs):
        self.runs += 1
        return []


def test_timing_leaves_out_the_warm_up():
    file = Counted()
    timing = time_file(file, {}, runs=5, warm_up=2)
    assert file.runs == 7
    assert len(timing.seconds) == 5
    assert min(timing.seconds) <= timing.median <= max(timing.seconds)


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"warm_up": -1}])
def test_timing_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        time_file(Counted(), {}, **wrong)


def test_a_convolution_in_float64_is_named_with_the_way_out(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h = onnx.helper
    x, w, y = (h.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [1, 1, 4]) for name in "xwy")
    graph = h.make_graph([h.make_node("Conv", ["x", "w"], ["y"])], "net", [x, w], [y])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx")
    with pytest.raises(rw.RoundwiseError) as caught:
        OnnxRuntime().open(tmp_path / "net.onnx")
    assert all(fact in str(caught.value) for fact in ("Conv", "float64", "model.float()"))


def test_runs_alternate_and_every_second_round_goes_backwards():
    made = []
    timings = time_alternately([lambda: made.append("a"), lambda: made.append("b")], rounds=2, warm_up=1)
    assert made == ["a", "b", "b", "a", "a", "b"]
    assert [len(timing.seconds) for timing in timings] == [2, 2]
    with pytest.raises(ValueError, match="rounds=0"):
        time_alternately([], rounds=0)


def test_a_speed_is_the_median_of_ratios_within_a_round():
    busy, own = Timing((1.0, 2.0, 30.0)), Timing((0.5, 2.0, 10.0))
    assert own.times_as_fast_as(busy) == (2.0, 1.5, 2.5)
    assert own.times_as_fast_as(own) == (1.0, 1.0, 1.0)
    assert Timing((1.0,)).times_as_fast_as(Timing((3.0,))) == (3.0, 3.0, 3.0)


def test_a_file_says_the_type_and_the_sizes_of_its_inputs(file):
    assert list(OnnxRuntime().open(file).details) == [FileInput("x", "float32", ("N", 3))]
