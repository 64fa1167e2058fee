"""The result: a network that computes with integer codes, what was done to get it, and how to keep it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from roundwise.artifacts.emit import without_quantizers
from roundwise.artifacts.plain import graph_from_plain, graph_to_plain
from roundwise.artifacts.rwfile import Contents, read, write
from roundwise.errors import ExportError, FileFormatError, ModelError
from roundwise.graph.graph import ConstantInput, Graph, InputSpec
from roundwise.recipe.recipe import Recipe
from roundwise.report import Report
from roundwise.wording import number_of

_EXAMPLE = 23
"""Samples in the batch that is exported: PyTorch may take equal sizes for the same size, and 23 is hardly a layer's."""


def versions() -> dict[str, str]:
    """What a result depends on besides the recipe."""
    return {
        "roundwise": importlib.metadata.version("roundwise"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@final
class Model(nn.Module):
    """A quantized network: call it as the model was called; it returns outputs of the same structure.

    It moves between devices as any module does, and keeps the dtype of the network that it was made from.

    Attributes:
        graph_module: what runs.
        report: what was done, per layer, with errors.
        recipe: what was asked for.
        versions: of the software that made it.
        samples: `(args, kwargs)` of a few calibration samples to check exports with; None after loading, or without
            data.
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
        self._inputs, self._batch, self._structure = graph.inputs, graph.batch, graph.structure
        self._redirect()
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network. It has no training behaviour and its weights take no gradients."""
        if any(isinstance(spec, ConstantInput) for spec in self._inputs):
            self._check_constants(args, kwargs)
        try:
            return self.graph_module(*args, **kwargs)
        except Exception as error:
            with contextlib.suppress(Exception):  # odd tensors do not tell their size: the error itself must stay
                self._note_inputs(error, args, kwargs)
            raise

    def _leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Any]] | None:
        """Inputs, each with its argument's name, as the network was made for; None if put together otherwise."""
        names, spec = self._structure.arguments, self._structure.in_spec
        made_args, made_kwargs = pytree.tree_unflatten([0] * spec.num_leaves, spec)
        made = dict(zip(names, [*made_args, *made_kwargs.values()], strict=True))
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) + len(kwargs) != len(made) or given.keys() != made.keys():
            return None
        if any(pytree.tree_structure(given[name]) != pytree.tree_structure(made[name]) for name in names):
            return None
        return [(name, leaf) for name in names for leaf in pytree.tree_leaves(given[name])]

    def _check_constants(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise where an input that is part of the graph has another value."""
        for spec, (name, leaf) in zip(self._inputs, self._leaves(args, kwargs) or (), strict=False):
            if isinstance(spec, ConstantInput) and (isinstance(leaf, Tensor | np.ndarray) or leaf != spec.value):
                raise ModelError(
                    f"'{name}' was {spec.value!r} when the network was quantized, and is {_told(leaf)} now: what the "
                    "model does then is not part of the quantized network. Quantize the model with that value too."
                )

    def _note_inputs(self, error: Exception, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add to an error what inputs the network takes, where those given are others."""
        leaves = self._leaves(args, kwargs)
        tensors = [
            (spec, leaf)
            for spec, (_, leaf) in zip(self._inputs, leaves or (), strict=False)
            if isinstance(spec, InputSpec)
        ]
        alike = leaves is not None and all(spec.is_like(leaf, self.device) for spec, leaf in tensors)
        if alike:
            batches = {leaf.shape[0] for spec, leaf in tensors if spec.shape}
            if len(batches) <= 1 and all(spec.fits(leaf, self._batch) for spec, leaf in tensors):
                return
        size = "samples" if self._batch is None else self._batch
        takes = [
            _words(spec.dtype, (size if n is None else n for n in spec.shape))
            if isinstance(spec, InputSpec)
            else repr(spec.value)
            for spec in self._inputs
        ]
        found = [*map(_told, args), *(f"{name}={_told(value)}" for name, value in kwargs.items())]
        note = f"The quantized network was made for {', '.join(takes)}, and was given {', '.join(found) or 'nothing'}."
        if alike:
            note += " Other sizes work only where each of its operations can take them."
        error.add_note(note)

    @property
    def graph(self) -> Graph:
        """The operations and constants; quantized weights are codes read through dequantize operations."""
        return Graph.of_module(self.graph_module, self._inputs, self._structure, self._batch)

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as a `torch.export` program with a dynamic batch dimension, for compilers and other runtimes.

        Raises:
            ExportError: PyTorch cannot export the graph.
        """
        if self._batch is not None:
            return self._export(None)
        try:
            return self._export(Dim("batch", min=1))
        except ExportError:  # some operations exclude a batch size or two, which a program may only find by itself
            return self._export(Dim.DYNAMIC)

    def _export(self, batch: Any) -> ExportedProgram:
        args, kwargs = self.example(_EXAMPLE)
        structure = self._structure
        flat = [{0: batch} if isinstance(spec, InputSpec) and batch and spec.shape else None for spec in self._inputs]
        dynamic_args, dynamic_kwargs = pytree.tree_unflatten(flat, structure.in_spec)
        dynamic = dict(zip(structure.arguments, [*dynamic_args, *dynamic_kwargs.values()], strict=True))
        try:
            with torch.no_grad():
                return torch.export.export(self.graph_module, args, kwargs, dynamic_shapes=dynamic)
        except Exception as error:
            raise ExportError(f"PyTorch cannot export the quantized graph as a program: {error}") from error

    def with_float_activations(self) -> Model:
        """The network with the same weights and no quantizers between operations; shares its tensors."""
        return Model(without_quantizers(self.graph), self.report, self.recipe, self.versions, self.samples)

    def example(self, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` of the right structure: zeros for a batch of this size (or of the only one that works)."""
        leaves = [
            spec.example(self._batch or batch).to(self.device) if isinstance(spec, InputSpec) else spec.value
            for spec in self._inputs
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure.in_spec)
        return args, kwargs

    def save(self, path: str | Path) -> None:
        """Write the model to one file, see `fileformat`. The file appears complete or not at all.

        Raises:
            FileFormatError: it cannot be written, or the graph holds something that has no safe form in a file.
        """
        write(Contents(self.graph, self.report, self.recipe, self.versions), Path(path))

    def extra_repr(self) -> str:
        bits = sorted({layer.bits for layer in self.report.layers})
        return f"{number_of(len(self.report.layers), 'quantized layer')}, {'/'.join(map(str, bits))} bits"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        """What `to`, `cuda` and the like come down to.

        Raises:
            ModelError: the dtype would change; scales and the operations between layers are made for one.
        """

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype:
                raise ModelError(
                    f"a quantized network keeps its dtype: {tensor.dtype} cannot become {moved.dtype}. Quantize the "
                    f"model in that dtype instead: `rw.quantize(model.to({moved.dtype}), …)`."
                )
            return moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        self.__dict__.pop("program", None)
        self._redirect()
        return self

    def _redirect(self) -> None:
        """Let operations that make tensors (`arange`, `zeros`, …) make them where the network is."""
        device, changed = self.device, False
        for node in self.graph_module.graph.nodes:
            if any(
                isinstance(value, torch.device) and value != device for value in (*node.args, *node.kwargs.values())
            ):
                node.args = tuple(device if isinstance(value, torch.device) else value for value in node.args)
                node.kwargs = {
                    name: device if isinstance(value, torch.device) else value for name, value in node.kwargs.items()
                }
                changed = True
        if changed:
            self.graph_module.recompile()

    def on_cpu(self) -> Model:
        """A copy on the CPU, or itself if it is there."""
        return self if self.device.type == "cpu" else copy.deepcopy(self).to("cpu")

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        graph = dataclasses.replace(self.graph, constants=copy.deepcopy(self.graph.constants, memo))
        return Model(graph, self.report, self.recipe, self.versions, copy.deepcopy(self.samples, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as plain data, like a file: PyTorch's own way for graphs would be to keep and run Python text."""
        graph = self.graph
        return _revive, (graph_to_plain(graph), graph.constants, self.report, self.recipe, self.versions, self.samples)


def _words(dtype: torch.dtype, shape: Iterable[object]) -> str:
    return f"{str(dtype).removeprefix('torch.')} [{', '.join(map(str, shape))}]"


def _told(value: Any) -> str:
    """An input in a few words."""
    match value:
        case Tensor():
            layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
            return f"{layout}{_words(value.dtype, value.shape)}" + ("" if value.is_cpu else f" on {value.device}")
        case bool() | int() | float() | str() | None:
            return repr(value)
        case list() | tuple() | dict():
            return f"a {type(value).__name__} of {len(value)}"
        case _:
            return f"a {type(value).__name__}, which is no tensor"


def _revive(graph: dict[str, Any], constants: dict[str, Tensor], *rest: Any) -> Model:
    return Model(graph_from_plain(graph, constants), *rest)


def load(path: str | Path) -> Model:
    """Read a model that `Model.save` wrote; it computes on the CPU until it is moved.

    Raises:
        FileFormatError: the file is missing, truncated, changed, of a newer layout, or names an operation that is not
            arithmetic on tensors.
    """
    contents = read(Path(path))
    try:
        return Model(contents.graph, contents.report, contents.recipe, contents.versions)
    except Exception as error:  # a file can be wrong in any way
        raise FileFormatError(f"{path} describes no valid network: {type(error).__name__}: {error}.") from error
