"""Layers are timed alone, as what they are: the file that is run gives outputs of PyTorch's shapes."""

import sys
from dataclasses import dataclass, field

import pytest
import torch
from facts import raises
from torch import nn

from roundwise.engine.latencies import Latencies
from roundwise.errors import InferenceError
from roundwise.frontends.torch_export import TorchExport
from roundwise.graph.analysis.layers import find_layers
from roundwise.graph.transforms.normalize import normalize
from roundwise.runtimes import OnnxRuntime, Runtime
from roundwise.runtimes.layer_times import LayerShape, LayerTimes

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LAYERS = {
    "linear": (nn.Linear(6, 4), (6,)),
    "linear on tokens": (nn.Linear(6, 4), (5, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (4, 11)),
    "conv2d, even kernel, same": (nn.Conv2d(4, 6, (2, 4), padding="same", dilation=(1, 3)), (4, 9, 8)),
    "conv2d, two paddings": (nn.Conv2d(4, 6, 3, padding=(0, 2)), (4, 9, 8)),
    "conv2d, grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 9, 8)),
    "conv2d, depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 9, 8)),
    "conv3d": (nn.Conv3d(4, 6, 3, padding=1), (4, 5, 4, 5)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=(1, 0), output_padding=1), (4, 5, 6)),
}


@dataclass
class Recording(Runtime):
    """ONNX Runtime that keeps the shapes of what it gives."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    title, suffixes, packages, extra, version = "", (), (), "", ""

    def open(self, path):
        opened, shapes = OnnxRuntime(threads=1).open(path), self.shapes

        class File:
            def run(self, inputs):
                outputs = opened.run(inputs)
                shapes.append(tuple(outputs[0].shape))
                return outputs

        return File()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case", LAYERS.values(), ids=LAYERS)
def test_the_file_has_the_layer(case):
    module, shape = case
    samples = torch.randn(2, *shape)
    graph = normalize(TorchExport().graph(nn.Sequential(module).eval(), (samples,), {}))
    (layer,) = find_layers(graph)
    runtime = Recording()
    seconds = Latencies(LayerTimes(runtime)).of_chain(graph, layer.input, [layer.map])
    assert 0 < seconds < 1
    assert set(runtime.shapes) == {(1, *module(samples).shape[1:])}


def test_a_chain_is_measured_once_and_whole():
    runtime = Recording()
    times = LayerTimes(runtime)
    vertical = LayerShape((5, 4, 3, 1), (2, 1), (1, 0, 1, 0), (1, 1), (0, 0))
    horizontal = LayerShape((6, 5, 1, 3), (1, 2), (0, 1, 0, 1), (1, 1), (0, 0))
    first = times.seconds((1, 4, 10, 12), [vertical, horizontal])
    assert set(runtime.shapes) == {(1, 6, 5, 6)}
    runs = len(runtime.shapes)
    assert times.seconds([1, 4, 10, 12], (vertical, horizontal)) == first
    assert len(runtime.shapes) == runs
    times.seconds((1, 4, 10, 12), [vertical])
    assert len(runtime.shapes) > runs


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with raises(InferenceError, "onnx", "roundwise[onnx]"):
        LayerTimes().seconds((1, 4), [LayerShape((3, 4))])
