"""Every exporter of the table writes files that appear complete or not at all, and says what it needs."""

import json

import pytest
import torch
from recipes import quantizing
from torch import nn

import roundwise as rw
from roundwise import exporters
from roundwise.exporters import EXPORTERS, exporter_for

SAMPLES = torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SUFFIXES = pytest.mark.parametrize("suffix", EXPORTERS)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    recipe = quantizing(rounding=rw.rounding.Nearest(), activations=rw.Activations())
    return rw.quantize(layers, SAMPLES, recipe)


def installed(suffix):
    for package in exporter_for_suffix(suffix).packages:
        pytest.importorskip(package)


def exporter_for_suffix(suffix):
    return EXPORTERS[suffix]


@SUFFIXES
def test_a_file_is_written_alone_and_its_size_is_told(suffix, model, tmp_path):
    installed(suffix)
    file = rw.export(model, tmp_path / f"net{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"net{suffix}"]
    assert file.path == tmp_path / f"net{suffix}"
    assert file.bytes == file.path.stat().st_size
    assert str(file.path) in str(file)
    assert json.loads(json.dumps(file.as_dict()))["bytes"] == file.bytes


@SUFFIXES
def test_an_earlier_file_is_replaced(suffix, model, tmp_path):
    installed(suffix)
    target = tmp_path / f"net{suffix}"
    target.write_bytes(b"earlier")
    rw.export(model, str(target))
    assert target.read_bytes() != b"earlier"


@SUFFIXES
def test_what_is_no_model_and_what_is_no_place_are_refused_and_leave_nothing(suffix, model, tmp_path):
    installed(suffix)
    with pytest.raises(rw.ExportError, match="Sequential"):
        rw.export(nn.Sequential(), tmp_path / f"net{suffix}")
    with pytest.raises(rw.ExportError, match="absent"):
        rw.export(model, tmp_path / "absent" / f"net{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(rw.ExportError, match="folder"):
        rw.export(model, tmp_path / f"folder{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"folder{suffix}"]


@SUFFIXES
def test_missing_packages_are_named_with_their_extra(suffix, model, tmp_path, monkeypatch):
    exporter = EXPORTERS[suffix]
    assert (exporter.extra is None) == (exporter.packages == ())
    if exporter.extra is not None:
        monkeypatch.setattr(exporters, "find_spec", lambda name: None)
        with pytest.raises(rw.ExportError) as caught:
            rw.export(model, tmp_path / f"net{suffix}")
        assert all(name in str(caught.value) for name in (*exporter.packages, f"roundwise[{exporter.extra}]"))


@SUFFIXES
def test_a_tolerance_is_for_exporters_that_compare(suffix, model, tmp_path):
    installed(suffix)
    if EXPORTERS[suffix].checks:
        with pytest.raises(rw.ExportError, match="1e-300"):
            rw.export(model, tmp_path / f"net{suffix}", tolerance=1e-300)
    else:
        with pytest.raises(rw.ExportError, match="tolerance"):
            rw.export(model, tmp_path / f"net{suffix}", tolerance=0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_suffix_may_be_in_capitals_and_an_unknown_one_is_refused_with_those_there_are(tmp_path):
    for suffix, exporter in EXPORTERS.items():
        assert exporter_for(tmp_path / f"NET{suffix.upper()}") is exporter
        assert suffix in exporter.suffixes
    for name in ("net.pth", "net"):
        with pytest.raises(rw.ExportError) as caught:
            exporter_for(tmp_path / name)
        assert all(fact in str(caught.value) for fact in (name, *EXPORTERS))


def test_a_file_of_roundwise_is_what_save_writes(model, tmp_path):
    rw.export(model, tmp_path / "net.rw")
    model.save(tmp_path / "saved.rw")
    exported, saved = (rw.load(tmp_path / name) for name in ("net.rw", "saved.rw"))
    assert exported.report == saved.report == model.report
    assert torch.equal(exported(SAMPLES), saved(SAMPLES))
    assert torch.equal(exported(SAMPLES), model(SAMPLES))


def test_an_onnx_file_holds_what_its_target_says(model, tmp_path):
    onnx = pytest.importorskip("onnx")
    installed(".onnx")
    target = EXPORTERS[".onnx"].targets[0]
    graph = onnx.load(rw.export(model, tmp_path / "net.onnx").path).graph
    types = {tensor.name: onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    read_by_layers = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in types]
    between = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in types]
    assert {types[node.input[0]] for node in read_by_layers} <= {one.name for one in target.weight_types}
    assert {types[node.input[2]] for node in between} <= {one.name for one in target.activation_types}
    ends = {makers[output.name].op_type for output in graph.output}
    assert ("DequantizeLinear" in ends) == target.quantizes_outputs
    quantized = [node.input[0] for node in between]
    assert (len(set(quantized)) < len(quantized)) == target.dequantizes_for_each_reader
