"""The quantized model: it runs, saves itself to a file, and holds its recipe and report."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram

from roundwise.artifacts.binding import Arguments, bound
from roundwise.artifacts.emit import without_quantizers
from roundwise.artifacts.guard import Guard, Memory
from roundwise.artifacts.plain import graph_from_plain, graph_to_plain
from roundwise.artifacts.program import EXAMPLE_BATCH, export_program
from roundwise.artifacts.rwfile import Contents, no_network, read, write
from roundwise.artifacts.schema import UnsafeError
from roundwise.artifacts.signature import CallSignature
from roundwise.artifacts.weights import StoredWeight, stored_weights
from roundwise.engine.torch_state import isolated_torch_state
from roundwise.errors import ExportError, FileFormatError, ModelError
from roundwise.files import named
from roundwise.graph.graph import Graph
from roundwise.graph.transforms.own_outputs import own_outputs
from roundwise.recipe.recipe import Recipe
from roundwise.report import Report
from roundwise.wording import number_of, printable

LARGEST_BATCH = 1 << 31
"""The most samples of an example: more would fit into no memory."""


def versions() -> dict[str, str]:
    """The versions of the software on which a result depends."""
    return {
        "roundwise": importlib.metadata.version("roundwise"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@final
class Model(nn.Module):
    """A quantized network. Call it like the original model; it returns outputs of the same structure.

    It can be moved to another device like any module, but its dtype cannot change. It cannot be trained: `train()` has
    no effect, and its weights have no gradients.

    Attributes:
        graph_module: the operations and tensors that run.
        report: the report of the run, with errors per layer.
        recipe: the recipe of the run.
        versions: versions of the software that made it.
        samples: `(args, kwargs)` with a few calibration samples, for checking exports; None after loading, or without
            data.

    A network that came from a file has a limit on the memory of a call, and is rehearsed before it runs.
    """

    def __init__(
        self,
        graph: Graph,
        report: Report,
        recipe: Recipe,
        made_with: dict[str, str],
        samples: Arguments | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(graph, Graph):
            raise ModelError(
                f"a Model is made of a captured graph with codes, not of a {type(graph).__name__}. Call "
                "`rw.quantize(model, data)`, or `rw.load(path)`."
            )
        graph = own_outputs(graph)
        self._memory, self._guard = memory, None if memory is None else Guard(graph, memory)
        self.graph_module: fx.GraphModule = graph.module()
        self.report, self.recipe, self.versions, self.samples = report, recipe, made_with, samples
        self._signature = CallSignature.of(graph)
        make_tensors_on(self.graph_module, self.device)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        Raises:
            ModelError: an input has another dtype or size than the network was captured for; an input that is a
                constant of the graph has another value than at capture; or an input that was not there at capture is
                not the default of the model's parameter. Of a network that was loaded from a file also if it cannot
                compute on the inputs, or would take more memory than allowed.
        """
        bound_args, bound_kwargs = bound(self._signature.structure, args, kwargs)
        self._signature.check_tensors(bound_args, bound_kwargs)
        self._signature.check_constants(bound_args, bound_kwargs)
        if self._guard is not None and not torch.compiler.is_exporting():
            checked = self._guarded
            if torch.compiler.is_compiling():  # the checks look at each call's numbers, which a compiled graph cannot
                checked = torch.compiler.disable(checked)
            return checked(self._guard, bound_args, bound_kwargs)
        try:
            return self.graph_module(*bound_args, **bound_kwargs)
        except Exception as error:
            with contextlib.suppress(Exception):  # Describing unusual inputs may fail; the first error must be raised.
                if note := self._signature.explain(args, kwargs, self.device):
                    error.add_note(note)
            raise

    def _guarded(self, guard: Guard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a network that came from a file: rehearse it first, and raise no errors but Roundwise's own."""
        try:
            leaves = self._signature.leaves(args, kwargs)
            if leaves is None:
                raise UnsafeError("the inputs are nested otherwise than those of the network")
            if any(type(leaf) is FakeTensor for leaf in leaves):
                return self.graph_module(*args, **kwargs)
            return self._apart(guard.call(self.graph_module, leaves))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            note = None
            with contextlib.suppress(Exception):
                note = self._signature.explain(args, kwargs, self.device)
            advice = note or "Check the values of the inputs, or get the network from whom you trust."
            raise ModelError(f"the network cannot be run: {printable(str(error)).rstrip('.')}. {advice}") from error

    def _apart(self, outputs: Any) -> Any:
        """Outputs that share no memory with the network's tensors: what a caller does to them changes no later call.

        Some operations return their operand, though their schema says that they make a new tensor: `einsum`, `type_as`.
        """
        own = {tensor.untyped_storage().data_ptr() for tensor in self.state_dict().values() if tensor.numel()}
        return pytree.tree_map_only(
            Tensor, lambda one: one.clone() if one.untyped_storage().data_ptr() in own else one, outputs
        )

    # ------------------------------------------------------------------------------------- graph, weights, program

    @property
    def graph(self) -> Graph:
        """The operations and constants; quantized weights are codes that operations of Roundwise dequantize."""
        signature = self._signature
        graph = Graph.of_module(self.graph_module, signature.inputs, signature.structure, signature.batch)
        graph.limits = signature.limits
        return graph

    @property
    def weights(self) -> dict[str, StoredWeight]:
        """Codes, scale and zero point of each quantized layer, by the layer's name.

        Example:
            >>> import roundwise as rw
            >>> model = nn.Sequential(nn.Linear(8, 4)).eval()
            >>> quantized = rw.quantize(model, torch.randn(16, 8), rw.Quantize(rounding=rw.rounding.Nearest()))
            >>> weight = quantized.weights["0"]
            >>> weight.codes.dtype, weight.codes.shape, weight.scale.shape
            (torch.int8, torch.Size([4, 8]), torch.Size([4]))
        """
        layers = {layer.name for layer in self.report.layers}
        return {
            name if name in layers else name.removesuffix(".weight"): weight
            for name, weight in stored_weights(self.graph).items()
        }

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as a `torch.export` program of plain ATEN operations, with a dynamic batch dimension.

        Raises:
            ExportError: PyTorch cannot export the graph.
        """
        if self._guard is not None:
            try:
                self._guard.check_batch(EXAMPLE_BATCH)
            except UnsafeError as error:
                raise ExportError(
                    f"the network cannot be run on {EXAMPLE_BATCH} samples, with which it would be traced: "
                    f"{printable(str(error))}. Use it as it is, or get it from whom you trust."
                ) from error
        return export_program(self.graph, self.device)

    def example(self, batch: int) -> Arguments:
        """`(args, kwargs)` of zeros for a batch of this size, or of the fixed size if the network has one.

        Raises:
            ModelError: the size of the batch is not a whole number of 1 or more.
        """
        if type(batch) is not int or not 1 <= batch <= LARGEST_BATCH:
            raise ModelError(
                f"batch={batch!r}: a batch has a whole number of samples, 1 to {LARGEST_BATCH:,}. Give such an int."
            )
        return self._signature.example(batch, self.device)

    def with_float_activations(self) -> Model:
        """The network with the same quantized weights and float activations; it shares all tensors with this one."""
        graph = without_quantizers(self.graph)
        return Model(graph, self.report, self.recipe, self.versions, self.samples, self._memory)

    def extra_repr(self) -> str:
        bits = sorted({layer.bits for layer in self.report.layers})
        if not bits:
            return "float weights"
        return f"{number_of(len(self.report.layers), 'quantized layer')}, {'/'.join(map(str, bits))} bits"

    # --------------------------------------------------------------------------------------------------- device

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""
        return next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))

    def on_cpu(self) -> Model:
        """The model itself if it is on the CPU, otherwise a copy on the CPU."""
        return self if self.device.type == "cpu" else copy.deepcopy(self).to("cpu")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        """Change every tensor; `to`, `cuda`, `half` and similar methods call this.

        Raises:
            ModelError: the dtype would change, but scales and operations are made for the present one.
        """

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype:
                raise ModelError(
                    f"the dtype of a quantized network cannot change, here from {tensor.dtype} to {moved.dtype}, "
                    "because its scales are made for one dtype. Quantize the model in the new dtype instead: "
                    f"`rw.quantize(model.to({moved.dtype}), …)`."
                )
            return moved

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        self.__dict__.pop("program", None)
        make_tensors_on(self.graph_module, self.device)
        return self

    # ------------------------------------------------------------------------------------------ saving and copying

    def save(self, path: str | Path) -> None:
        """Write the model to one `.rw` file. The file appears complete or not at all.

        Raises:
            FileFormatError: the name does not end in `.rw`, the file cannot be written, or the graph holds a value
                that a `.rw` file cannot store.
        """
        place = named(path, FileFormatError, ".rw")
        write(Contents(self.graph, self.report, self.recipe, self.versions), place)

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        graph = dataclasses.replace(self.graph, constants=copy.deepcopy(self.graph.constants, memo))
        return Model(graph, self.report, self.recipe, self.versions, copy.deepcopy(self.samples, memo), self._memory)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle plain data, as in a file. PyTorch's own pickle of a graph contains Python code, which loading runs."""
        graph = self.graph
        rest = (self.report, self.recipe, self.versions, self.samples, self._memory)
        return _revive, (graph_to_plain(graph), graph.constants, *rest)


def _revive(graph: dict[str, Any], constants: dict[str, Tensor], *rest: Any) -> Model:
    return Model(graph_from_plain(graph, constants), *rest)


def make_tensors_on(module: fx.GraphModule, device: torch.device) -> None:
    """Change the operations of a module that create tensors (`arange`, `zeros`, …) so that they use this device."""

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    changed = False
    for node in module.graph.nodes:
        if any(isinstance(value, torch.device) and value != device for value in (*node.args, *node.kwargs.values())):
            node.args = tuple(moved(value) for value in node.args)
            node.kwargs = {name: moved(value) for name, value in node.kwargs.items()}
            changed = True
    if changed:
        module.recompile()


def load(path: str | Path, memory_limit: int | None = None) -> Model:
    """Read a model that `Model.save` wrote; it is on the CPU until you move it.

    The file may come from anyone. Loading and calling it runs no code but operations on tensors, none of which reads or
    writes memory of others, draws random numbers, or touches files; the page "What a file can and cannot do" of the
    documentation has the details. What the network computes is as good as who made it.

    Args:
        path: of the file.
        memory_limit: the most bytes that the results of operations may take in a call. None allows 256 MiB, plus 1024
            bytes for each byte of the inputs, plus 64 bytes for each byte of the file.

    Raises:
        FileFormatError: the file is missing, truncated, changed, of another layout version, names an operation that is
            not arithmetic on tensors, or describes a network that cannot run or needs more memory than allowed.
        ModelError: the limit is not a whole number of 0 or more.
    """
    if memory_limit is not None and (type(memory_limit) is not int or memory_limit < 0):
        raise ModelError(
            f"memory_limit={memory_limit!r}: it must be a whole number of bytes, 0 or more, or None. Give 1 << 30 for "
            "1 GiB, for instance."
        )
    path = named(path, FileFormatError)
    with isolated_torch_state(torch.device("cpu")):
        contents, memory = read(path), Memory(path.stat().st_size, memory_limit)
        try:
            return Model(contents.graph, contents.report, contents.recipe, contents.versions, memory=memory)
        except Exception as error:  # a file can be wrong in any way
            raise no_network(path, error) from error
