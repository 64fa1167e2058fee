"""Divisions of sizes and whole numbers in an ONNX file are those of Python, and never end the process."""

import operator
import subprocess
import sys

import pytest
import torch
from fuzz.hostile import program, written

import roundwise as rw

pytest.importorskip("onnxruntime")

X = {"node": "x"}
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
for samples in range(1, int(sys.argv[2])):
    x = {session.get_inputs()[0].name: numpy.zeros((samples, 4), numpy.float32)}
    try:
        print(int(session.run(None, x)[0][0, 0]))
    except Exception as error:
        print("error")
"""


def node(name, target, *args):
    args = [{"node": one} if isinstance(one, str) else one for one in args]
    return {"op": "call_function", "name": name, "target": target, "args": {"list": args}, "kwargs": {}}


def exported(path, nodes, samples, tensors=None):
    """What ONNX Runtime gives for each number of samples, in a process of its own."""
    model = rw.load(
        written(path / "model.rw", program([node("s", "aten.sym_size.int", "x", 0), *nodes], tensors or {}))
    )
    rw.export(model, path / "model.onnx")
    command = [sys.executable, "-c", RUN, str(path / "model.onnx"), str(samples)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("divisor", [5, -3, "e"])
@pytest.mark.parametrize("name", ["floordiv", "mod"])
def test_sizes_are_divided_as_in_python(name, divisor, tmp_path):
    """Among the numbers of samples are those for which the dividend is negative, and the divisor 0 or −1."""
    nodes = [node("d", "operator.sub", "s", 12), node("e", "operator.sub", "s", 6)]
    nodes += [node("q", f"operator.{name}", "d", divisor), node("y", "aten.add.Tensor", "x", "q")]
    found = exported(tmp_path, nodes, 30)
    for samples, one in enumerate(found, start=1):
        by = samples - 6 if divisor == "e" else divisor
        if by:
            assert int(one) == getattr(operator, name)(samples - 12, by), samples


@pytest.mark.parametrize("name", ["floordiv", "mod"])
def test_the_smallest_whole_number_divided_by_minus_one_does_not_end_the_process(name, tmp_path):
    """For the few samples with which the file is checked, 0 is divided by 1; for 100 samples, −2⁶³ by −1."""
    nodes = [
        *(node("d", "operator.floordiv", "s", 100), node("l", "operator.mul", "d", -1)),  # −1 for 100 samples
        *(node("a", "operator.mul", "l", (1 << 63) - 1), node("b", "operator.add", "a", "l")),
        *(node("m", "operator.mul", "l", 2), node("n", "operator.add", "m", 1)),  # −1 for 100 samples, 1 for fewer
        *(node("q", f"operator.{name}", "b", "n"), node("r", "operator.mod", "q", 3)),
        node("y", "aten.add.Tensor", "x", "r"),
    ]
    assert len(exported(tmp_path, nodes, 102)) == 101


def test_whole_numbers_divided_by_a_size_do_not_end_the_process(tmp_path):
    nodes = [node("d", "operator.sub", "s", 6), node("q", "aten.floor_divide.Scalar", "w", "d")]
    nodes.append(node("y", "aten.add.Tensor", "x", "q"))
    found = exported(tmp_path, nodes, 10, {"w": torch.tensor([7, -7, 1, 0])})
    assert [int(found[by + 5]) for by in (-3, -2, -1, 1, 2, 3)] == [7 // by for by in (-3, -2, -1, 1, 2, 3)]
