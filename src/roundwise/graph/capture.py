"""Capture: any PyTorch module as one flat list of ATen operations, through `torch.export`.

The model's Python runs once on fake tensors, so functional calls, reused modules and in-place operations need no
rewriting; in-place operations come out as pure ones. The batch dimension stays symbolic. The model itself is left as it
was: a training-mode model is put into evaluation mode for the capture and back afterwards.
"""

from __future__ import annotations

import contextlib
import inspect
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.graph import _PyTreeInfo

from roundwise.errors import CalibrationError, CaptureError, ModelError


@final
@dataclass(frozen=True)
class InputSpec:
    """One tensor that the network takes: its shape with None for the batch dimension, and its dtype."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def example(self, batch: int) -> Tensor:
        """Zeros of this shape."""
        return torch.zeros([batch if size is None else size for size in self.shape], dtype=self.dtype)


@final
@dataclass(frozen=True)
class ConstantInput:
    """An input that is not a tensor: its value was fixed when the network was captured."""

    value: bool | int | float | str | None


@final
@dataclass
class Graph:
    """A network: pure operations in order, and the tensors they read.

    Attributes:
        operations: nodes are `placeholder` (inputs, flattened), `get_attr` (constants, one node each, named as in the
            model), `call_function` (ATen operations without side effects) and `output`.
        constants: parameters and buffers by name.
        inputs: what each placeholder takes, in order.
        batch: None where any batch size will do; else the only one that works.
    """

    operations: fx.Graph
    constants: dict[str, Tensor]
    inputs: tuple[InputSpec | ConstantInput, ...]
    batch: int | None = None

    @classmethod
    def of_module(
        cls, module: fx.GraphModule, inputs: tuple[InputSpec | ConstantInput, ...] = (), batch: int | None = None
    ) -> Graph:
        """The graph that a module runs, and the tensors it holds now."""
        constants: dict[str, Tensor] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                owner: Any = module
                for part in str(node.target).split("."):
                    owner = getattr(owner, part)
                constants[str(node.target)] = owner.detach() if isinstance(owner, Tensor) else owner
        return cls(module.graph, constants, inputs, batch)

    @property
    def signature(self) -> _PyTreeInfo:
        """How `(args, kwargs)` and outputs are put together from flat lists, and the names of the arguments."""
        info: _PyTreeInfo = self.operations._codegen.pytree_info  # type: ignore[attr-defined]
        return info

    def copy(self) -> Graph:
        """A graph that can be changed without changing this one; tensors are shared."""
        return Graph(_copy_fx(self.operations), dict(self.constants), self.inputs, self.batch)

    def module(self) -> fx.GraphModule:
        """A module that runs the graph and is called as the model was."""
        return fx.GraphModule(
            {name: _frozen(value) for name, value in self.constants.items()}, _copy_fx(self.operations)
        )

    def constant(self, argument: Any) -> Tensor | None:
        """The tensor behind a node's argument if it is a constant, else None."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            value = self.constants.get(str(argument.target))
            return value if isinstance(value, Tensor) else None
        return None

    def add_constant(self, name: str, value: Tensor) -> fx.Node:
        """A node that reads a new constant; the name is made unique and the node stands before all operations."""
        unique, count = name, 0
        while unique in self.constants:
            count += 1
            unique = f"{name}_{count}"
        self.constants[unique] = value
        first = next(node for node in self.operations.nodes if node.op not in ("placeholder", "get_attr"))
        with self.operations.inserting_before(first):
            node = self.operations.get_attr(unique)
        node.meta["val"] = value
        return node

    def prune(self) -> None:
        """Drop operations whose result nobody reads, and constants that no operation reads."""
        for node in reversed(list(self.operations.nodes)):
            if not node.users and node.op in ("call_function", "get_attr"):
                self.operations.erase_node(node)
        read = {str(node.target) for node in self.operations.nodes if node.op == "get_attr"}
        for name in [name for name in self.constants if name not in read]:
            del self.constants[name]


def bind(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operation by their names in its schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    bound = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def capture(model: nn.Module | ExportedProgram, args: Sequence[Any], kwargs: dict[str, Any]) -> Graph:
    """Turn a model into a `Graph`.

    Args:
        model: in any mode, on any one device; or a program that was exported before.
        args, kwargs: an example of its inputs, at least 2 samples along the first dimension of every tensor.

    Raises:
        ModelError: parameters without data, or on several devices.
        CalibrationError: the model does not run on the example.
        CaptureError: the model runs, but cannot be turned into a graph; says where and what to do.
    """
    program = model if isinstance(model, ExportedProgram) else _export(model, tuple(args), kwargs)
    with _quiet():
        flat = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(flat, fx.GraphModule)
    graph = Graph.of_module(flat)
    _drop_writes(graph)
    _drop_checks(graph)
    _merge_constants(graph)
    graph.prune()
    graph.inputs, graph.batch = _inputs(graph)
    return graph


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ExportedProgram:
    _check_parameters(model)
    batch = next((t.shape[0] for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()), None)
    dynamic = Dim("batch", min=1)

    def dynamic_of(leaf: Any) -> Any:
        return {0: dynamic} if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch else None

    with _evaluation_mode(model), _quiet(), torch.no_grad():
        try:
            model(*args, **kwargs)
        except Exception as error:
            shapes = [
                f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)
                for leaf in pytree.tree_leaves((args, kwargs))
            ]
            raise CalibrationError(
                f"the model does not run on the calibration samples. It was called with {', '.join(shapes)} and raised "
                f"{type(error).__name__}: {_first_lines(error)}\nGive samples of the shape, dtype and structure that "
                "the model's forward takes; the first dimension of every tensor counts samples."
            ) from error
        try:
            # torch.export wants them by parameter name, *args as one tuple.
            named = inspect.signature(model.forward).bind(*args, **kwargs).arguments
            return torch.export.export(model, args, kwargs, dynamic_shapes=pytree.tree_map(dynamic_of, named))
        except Exception as error:
            raise CaptureError(_explain(model, error)) from error


def _explain(model: nn.Module, error: Exception) -> str:
    """Where in the user's code the capture stopped, and what can be quantized instead."""
    place, module = _locate(model, error)
    text = f"the model cannot be captured as one graph. {type(error).__name__}: {_first_lines(error)}"
    if place:
        text += f"\nIt stopped at {place}"
        text += f", inside the module '{module}' ({type(model.get_submodule(module)).__name__})." if module else "."
    sizes = {
        name: sum(p.numel() for p in child.parameters())
        for name, child in model.named_children()
        if not (module and (module == name or module.startswith(name + ".")))
    }
    sizes = {name: size for name, size in sizes.items() if size}
    text += (
        "\nThe usual cause is Python control flow that depends on the values of tensors, or a batch size that the code "
        "turns into a constant."
    )
    if sizes:
        largest = max(sizes, key=lambda name: sizes[name])
        share = sizes[largest] / max(1, sum(p.numel() for p in model.parameters()))
        text += (
            f"\nWay out: quantize the part that holds the weights, `rw.quantize(model.{largest}, …)` "
            f"({share:.0%} of the parameters), with samples of that part's inputs, and put it back: "
            f"`model.{largest} = quantized`."
        )
    else:
        text += "\nWay out: quantize the submodule that holds the weights, `rw.quantize(model.backbone, …)`."
    return text


def _locate(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """The last place outside PyTorch and this library in the error's traceback, and the submodule it belongs to."""
    names = {id(module): name for name, module in model.named_modules()}
    ours, torchs = Path(__file__).parents[1], Path(torch.__file__).parent
    place, module = "", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        owner = frame.f_locals.get("self")
        if id(owner) in names and names[id(owner)]:
            module = names[id(owner)]
        if ours in path.parents or torchs in path.parents or path.name.startswith("<"):
            continue
        if isinstance(owner, nn.Module) or place:
            place = f"{path}:{line}, in {frame.f_code.co_name}"
    return place, module


def _first_lines(error: BaseException, lines: int = 4, width: int = 600) -> str:
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:lines] if line.strip())
    return text[:width] + ("…" if len(text) > width else "")


def _check_parameters(model: nn.Module) -> None:
    devices: dict[torch.device, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ModelError(
                f"'{name}' is on the 'meta' device: it has a shape but no values. Load the model's weights first."
            )
        devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        where = ", ".join(f"'{name}' on {device}" for device, name in devices.items())
        raise ModelError(f"the model is spread over several devices: {where}. Move it to one, e.g. `model.to('cpu')`.")


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every submodule, and afterwards the mode that each had before."""
    modes = {module: module.training for module in model.modules()}
    if any(modes.values()):
        warnings.warn(
            "the model is in training mode; its evaluation behaviour is quantized (dropout off, batch-norm with its "
            "running statistics). Call `model.eval()` first to say that this is what you mean.",
            UserWarning,
            stacklevel=2,
        )
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No fused attention kernel that hides its linear layers, and no warnings about PyTorch's own insides."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\..*|copyreg", category=FutureWarning)
            warnings.filterwarnings("ignore", module=r"torch\..*", category=DeprecationWarning)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _drop_writes(graph: Graph) -> None:
    """A model that writes to its input is captured without that; one that writes to its own state cannot be."""
    for node in list(graph.operations.nodes):
        if node.op == "call_function" and node.target is torch.ops.aten.copy_.default:
            destination = node.args[0]
            assert isinstance(destination, fx.Node)
            if destination.op == "get_attr":
                raise CaptureError(
                    f"the model changes its own state while it runs: it writes to '{destination.target}'. A quantized "
                    "network is a pure function of its inputs. Make that buffer an input and an output, or quantize a "
                    "submodule that does not write to it."
                )
            source = node.args[1]
            assert isinstance(source, fx.Node)
            node.replace_all_uses_with(source)
            graph.operations.erase_node(node)


def _drop_checks(graph: Graph) -> None:
    """Drop what an exported graph holds only to check its inputs at run time."""
    for node in reversed(list(graph.operations.nodes)):
        if node.op == "call_module" and not node.users:
            graph.operations.erase_node(node)


def _merge_constants(graph: Graph) -> None:
    """One name and one node for each tensor, also where the model knows it by several (tied weights)."""
    keepers: dict[Any, fx.Node] = {}
    for node in list(graph.operations.nodes):
        if node.op != "get_attr":
            continue
        value = graph.constants[str(node.target)]
        key: Any = str(node.target)
        if isinstance(value, Tensor):
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else key
        if key in keepers:
            node.replace_all_uses_with(keepers[key])
            graph.operations.erase_node(node)
        else:
            keepers[key] = node


def _inputs(graph: Graph) -> tuple[tuple[InputSpec | ConstantInput, ...], int | None]:
    specs: list[InputSpec | ConstantInput] = []
    batch: int | None = None
    for node in graph.operations.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                specs.append(ConstantInput(value))
                continue
            shape: list[int | None] = [int(size) if type(size) is int else None for size in value.shape]
            if shape and shape[0] is not None:
                batch = shape[0]
            if None in shape[1:]:
                raise CaptureError(
                    f"input '{node.name}' of the program has further dynamic dimensions besides the batch: "
                    f"{list(value.shape)}. Export it with the first dimension dynamic and the others fixed."
                )
            specs.append(InputSpec(node.name, tuple(shape), value.dtype))
    return tuple(specs), batch


def _copy_fx(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        values[node] = copy.node_copy(node, lambda n: values[n])
    copy._codegen = graph._codegen  # how arguments are flattened and outputs put together again
    return copy


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return nn.Parameter(value, requires_grad=False)
    return value
