"""The result: a network that computes with integer codes, what was done to get it, and how to keep it."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from roundwise.errors import ExportError
from roundwise.fileformat import Contents, read, write
from roundwise.graph.capture import Graph, InputSpec
from roundwise.recipe import Recipe
from roundwise.report import Report


def versions() -> dict[str, str]:
    """What a result depends on besides the recipe."""
    return {
        "roundwise": importlib.metadata.version("roundwise"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@final
class QuantizedModel(nn.Module):
    """A quantized network: call it as the model was called; it returns outputs of the same structure.

    Attributes:
        graph_module: what runs.
        report: what was done, per layer, with errors.
        recipe: what was asked for.
        versions: of the software that made it.
        samples: `(args, kwargs)` of a few calibration samples to check exports with; None after loading.
    """

    def __init__(
        self,
        graph: Graph,
        report: Report,
        recipe: Recipe,
        made_with: dict[str, str],
        samples: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.graph_module: fx.GraphModule = graph.module()
        self.report, self.recipe, self.versions, self.samples = report, recipe, made_with, samples
        self._inputs, self._batch = graph.inputs, graph.batch
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network. It has no training behaviour and its weights take no gradients."""
        return self.graph_module(*args, **kwargs)

    @property
    def graph(self) -> Graph:
        """The operations and constants; quantized weights are codes read through dequantize operations."""
        return Graph.of_module(self.graph_module, self._inputs, self._batch)

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as a `torch.export` program with a dynamic batch dimension, for compilers and other runtimes.

        Raises:
            ExportError: PyTorch cannot export the graph.
        """
        args, kwargs = self.example(2)
        batch = Dim("batch", min=1) if self._batch is None else None
        flat = [{0: batch} if isinstance(spec, InputSpec) and batch and spec.shape else None for spec in self._inputs]
        dynamic_args, dynamic_kwargs = pytree.tree_unflatten(flat, self.graph.signature.in_spec)
        names = self.graph.signature.orig_args
        dynamic = dict(zip(names, [*dynamic_args, *dynamic_kwargs.values()], strict=True))
        try:
            with torch.no_grad():
                return torch.export.export(self.graph_module, args, kwargs, dynamic_shapes=dynamic)
        except Exception as error:
            raise ExportError(f"PyTorch cannot export the quantized graph as a program: {error}") from error

    def example(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` of the right structure: zeros for a batch of this size (or of the only one that works)."""
        device = next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))
        leaves = [
            spec.example(self._batch or batch).to(device) if isinstance(spec, InputSpec) else spec.value
            for spec in self._inputs
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.graph.signature.in_spec)
        return args, kwargs

    def save(self, path: str | Path) -> None:
        """Write the model to one file, see `fileformat`. The file appears complete or not at all.

        Raises:
            FileFormatError: the graph holds something that has no safe form in a file.
        """
        write(Contents(self.graph, self.report, self.recipe, self.versions), Path(path))

    def extra_repr(self) -> str:
        bits = sorted({layer.bits for layer in self.report.layers})
        return f"{len(self.report.layers)} quantized layers, {'/'.join(map(str, bits))} bits"


def load(path: str | Path) -> QuantizedModel:
    """Read a model that `QuantizedModel.save` wrote; it computes on the CPU until it is moved.

    Raises:
        FileFormatError: the file is missing, truncated, changed, of a newer layout, or names an operation that is not
            arithmetic on tensors.
    """
    contents = read(Path(path))
    return QuantizedModel(contents.graph, contents.report, contents.recipe, contents.versions)
