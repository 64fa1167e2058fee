"""How long layers take alone, such as convolutions of certain shapes: a small file is made, run and timed.

The file has the layers one after the other, with random weights, and nothing else. The time is that of one sample, and
of the fastest of many runs: what other programs do at the same time only makes runs slower.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, final

import numpy as np

from roundwise.errors import InferenceError
from roundwise.runtimes.interface import Array, Runtime
from roundwise.runtimes.onnxruntime import OnnxRuntime
from roundwise.runtimes.timing import time_file

SECONDS = 0.02
"""How long the runs of a chain of layers are measured. Longer runs give times that vary less."""

RUNS = 8, 200
"""The fewest and the most runs that are measured, whatever they take."""

OPSET, IR_VERSION = 21, 10
"""Those of exported networks."""


@final
@dataclass(frozen=True)
class LayerShape:
    """A linear layer or a convolution, as far as its time depends on it.

    Attributes:
        weight: shape of the weight as PyTorch has it: `[out, in]`, `[out, in/groups, *kernel]`, or for a transposed
            convolution `[in, out/groups, *kernel]`.
        stride, dilation, output_padding: one number for each dimension of the kernel; empty for a linear layer.
        padding: before all dimensions of the kernel, then after them.
        groups: of a convolution.
        transposed: whether it is a transposed convolution.
    """

    weight: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.weight[1] * self.groups if self.transposed else self.weight[0]


@final
@dataclass(eq=False)
class LayerTimes:
    """Times of chains of layers in ONNX Runtime; each is measured once.

    Attributes:
        runtime: that runs the files.
    """

    runtime: Runtime = field(default_factory=OnnxRuntime)
    _known: dict[tuple[tuple[int, ...], tuple[LayerShape, ...]], float] = field(default_factory=dict)

    def seconds(self, inputs: Sequence[int], layers: Sequence[LayerShape]) -> float:
        """How long some layers, one after the other, take on one sample.

        Args:
            inputs: shape of the first layer's input.
            layers: at least one.

        Raises:
            InferenceError: ONNX Runtime or onnx is not installed, or cannot run the layers.
        """
        key = tuple(inputs), tuple(layers)
        if key not in self._known:
            self._known[key] = self._measured(*key)
        return self._known[key]

    def _measured(self, inputs: tuple[int, ...], layers: tuple[LayerShape, ...]) -> float:
        values = {"x0": np.random.default_rng(0).standard_normal(inputs, np.float32)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layers.onnx"
            path.write_bytes(_file(inputs, layers))
            opened = self.runtime.open(path)
            opened.run(values)
            begin = time.perf_counter()
            opened.run(values)
            about = max(time.perf_counter() - begin, 1e-9)
            fewest, most = RUNS
            runs = min(most, max(fewest, math.ceil(SECONDS / about)))
            return min(time_file(opened, values, runs=runs, warm_up=1).seconds)


def _file(inputs: tuple[int, ...], layers: tuple[LayerShape, ...]) -> bytes:
    """An ONNX file with the layers, with random weights."""
    onnx = _package()
    helper, numbers = onnx.helper, np.random.default_rng(0)
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, *shape: int) -> str:
        values: Array = numbers.standard_normal(shape, np.float32) / math.sqrt(math.prod(shape[1:]))
        constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    for number, layer in enumerate(layers):
        x, y, bias = f"x{number}", f"x{number + 1}", constant(f"b{number}", layer.outputs)
        if layer.stride:
            weight = constant(f"w{number}", *layer.weight)
            settings = {"output_padding": list(layer.output_padding)} if layer.transposed else {}
            settings |= {"strides": list(layer.stride), "pads": list(layer.padding), "dilations": list(layer.dilation)}
            kind = "ConvTranspose" if layer.transposed else "Conv"
            nodes.append(helper.make_node(kind, [x, weight, bias], [y], group=layer.groups, **settings))
        else:
            weight = constant(f"w{number}", *reversed(layer.weight))
            nodes.append(helper.make_node("MatMul", [x, weight], [f"{y}_"]))
            nodes.append(helper.make_node("Add", [f"{y}_", bias], [y]))
    kind = onnx.TensorProto.FLOAT
    first = helper.make_tensor_value_info("x0", kind, list(inputs))
    last = helper.make_tensor_value_info(f"x{len(layers)}", kind, None)
    graph = helper.make_graph(nodes, "layers", [first], [last], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    found: bytes = model.SerializeToString()
    return found


def _package() -> ModuleType:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise InferenceError(
            'onnx is not installed here, and the time of layers is measured with it. Run: pip install "roundwise[onnx]"'
        ) from error
    package: ModuleType = onnx
    return package
