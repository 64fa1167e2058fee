"""ONNX files for training are refused, and files that lie beside one are not read to find that out."""

import pytest
from facts import raises

from roundwise import ModelError
from roundwise.loading.training import refuse_training_onnx

onnx = pytest.importorskip("onnx")


def written(path, location, reader, constant):
    """A file whose flag `c` lies in a file of its own, and is read by a `Dropout` or by nothing."""
    flag = onnx.TensorProto(name="c", data_type=onnx.TensorProto.BOOL, data_location=onnx.TensorProto.EXTERNAL)
    flag.external_data.add(key="location", value=location)
    inputs = ["x", "", "c"] if reader == "Dropout" else ["x"]
    nodes = [onnx.helper.make_node(reader, inputs, ["y"])]
    if constant:
        nodes.insert(0, onnx.helper.make_node("Constant", [], ["c"], value=flag))
    of_values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", of_values[:1], of_values[1:], [] if constant else [flag])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("location", ["../secret.bin", "/dev/zero", "missing.bin"])
def test_numbers_outside_of_the_file_are_not_read(tmp_path, location, constant):
    written(tmp_path / "net.onnx", location, "Relu", constant)
    refuse_training_onnx(tmp_path / "net.onnx")
    written(tmp_path / "net.onnx", location, "Dropout", constant)  # the flag could be true
    with raises(ModelError, "Dropout"):
        refuse_training_onnx(tmp_path / "net.onnx")
