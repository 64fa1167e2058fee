"""From a program of `torch.export` to a `Graph`: everything goes that is not a computation on the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from roundwise.errors import CaptureError
from roundwise.frontends.explain import place_of, way_out
from roundwise.frontends.memory import order_depends_on_inputs, settle_memory_order
from roundwise.graph.graph import CallStructure, ConstantInput, Graph, InputSpec, bind, is_random
from roundwise.graph.sizes import Limits, Range, VariableSize
from roundwise.graph.transforms.write_out import write_out

aten = torch.ops.aten


def graph_of_program(program: ExportedProgram, model: nn.Module, dynamic: Sequence[Mapping[int, str]] = ()) -> Graph:
    """The graph that a program runs.

    Args:
        program: without in-place operations, but for writes to inputs and buffers at its end.
        model: what it was exported from, to name a way out where there is no such graph.
        dynamic: for each input the names of its dynamic dimensions.

    Raises:
        CaptureError: the program writes to the model's state, draws random numbers, or has inputs that no graph has.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    info = module.graph._codegen.pytree_info  # type: ignore[attr-defined]  # nothing else has the arguments' names
    graph = Graph.of_module(module, structure=CallStructure(tuple(info.orig_args), info.in_spec, info.out_spec))
    _drop_writes(graph, model)
    _drop_checks(graph)
    _merge_constants(graph)
    graph.prune()
    _check_deterministic(graph)
    contiguous = order_depends_on_inputs(graph.operations)
    settle_memory_order(graph)
    write_out(graph)
    graph.inputs, graph.batch = read_inputs(graph.operations, program.range_constraints, dynamic)
    graph.limits = Limits(batch_range(program), contiguous)
    return graph


def read_inputs(
    operations: fx.Graph, ranges: Mapping[Any, Any] | None = None, dynamic: Sequence[Mapping[int, str]] = ()
) -> tuple[tuple[InputSpec | ConstantInput, ...], int | None]:
    """What each placeholder takes, and the batch size if it is fixed.

    Args:
        operations: with sizes of placeholders that may be symbols.
        ranges: the values that each symbol may have; without them, 2 or more.
        dynamic: for each placeholder the names of dynamic dimensions; others that are dynamic get a name made of the
            placeholder's name and the dimension.

    Raises:
        CaptureError: an input is neither a tensor nor a fixed value, or a size follows from another by arithmetic.
    """
    specs: list[InputSpec | ConstantInput] = []
    batch: int | None = None
    named: dict[str, str] = {}
    for number, node in enumerate(operations.find_nodes(op="placeholder")):
        value = node.meta.get("val")
        if value is None or isinstance(value, bool | int | float | str):
            specs.append(ConstantInput(value))
            continue
        if not isinstance(value, Tensor):
            raise CaptureError(
                f"input '{node.name}' of the program is neither a tensor nor a fixed value, but {type(value).__name__} "
                f"{value}. Export the program with that value fixed, or as a tensor."
            )
        sizes: list[Any] = list(value.shape)
        shape: list[int | None] = [size.node.hint if isinstance(size, torch.SymInt) else size for size in sizes]
        variable: list[VariableSize] = []
        for dim, size in enumerate(sizes):
            if dim and isinstance(size, torch.SymInt):
                if not size.node.expr.is_Symbol:
                    raise CaptureError(
                        f"dimension {dim} of input '{node.name}' of the program has the size {size}, which follows "
                        "from another size by arithmetic. Export the program with that size fixed, or as a plain "
                        "`torch.export.Dim`."
                    )
                wanted = dynamic[number].get(dim) if number < len(dynamic) else None
                # Sizes with one symbol are equal in every call: they have one name.
                name = named.setdefault(str(size), wanted or f"{node.target}_{dim}")
                variable.append(VariableSize(dim, name, size_range(size.node.expr, ranges or {})))
        if sizes and isinstance(sizes[0], torch.SymInt):
            shape[0] = None
        elif shape:
            batch = shape[0]
        specs.append(InputSpec(str(node.target), tuple(shape), value.dtype, tuple(variable)))
    return tuple(specs), batch


def batch_range(program: ExportedProgram) -> Range:
    """How many samples a call of a program may have, as far as PyTorch knows."""
    inputs = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    values = [node.meta.get("val") for node in inputs]
    sizes: list[Any] = [value.shape[0] for value in values if isinstance(value, Tensor) and value.dim()]
    return next(
        (size_range(size.node.expr, program.range_constraints) for size in sizes if isinstance(size, torch.SymInt)),
        Range(),
    )


def size_range(symbol: Any, ranges: Mapping[Any, Any]) -> Range:
    """The values that a symbol may have."""
    values = ranges.get(symbol)
    if values is None:
        return Range(2)
    # PyTorch's infinity is not an `Integer`, though it says that it is finite.
    return Range(max(1, int(values.lower)), int(values.upper) if values.upper.is_Integer else None)


def _drop_writes(graph: Graph, model: nn.Module) -> None:
    """Leave out writes to the model's inputs, with a note; refuse writes to its state."""
    for node in list(graph.operations.nodes):
        if node.op == "call_function" and node.target is aten.copy_.default:
            destination, source = node.args[:2]
            assert isinstance(destination, fx.Node)
            assert isinstance(source, fx.Node)
            if destination.op == "get_attr":
                name = str(destination.target)
                raise CaptureError(
                    f"the model changes its own state while it runs: it writes to '{name}'{_at(source)}. A quantized "
                    "network is a pure function of its inputs. Make that buffer an input and an output of forward, or "
                    "leave it alone in evaluation mode (`if self.training: …`).\n"
                    f"{way_out(model, name.rpartition('.')[0])}"
                )
            graph.notes = (
                *graph.notes,
                f"the model writes to its input '{destination.target}'{_at(source)}: its caller finds other values "
                "in that tensor after a call. The network leaves its inputs as they are",
            )
            node.replace_all_uses_with(source)
            graph.operations.erase_node(node)


def _drop_checks(graph: Graph) -> None:
    """Drop the calls that only check inputs at run time."""
    for node in reversed(list(graph.operations.nodes)):
        if node.op == "call_module" and not node.users:
            graph.operations.erase_node(node)


def _merge_constants(graph: Graph) -> None:
    """Give each tensor one name and one node, also where the model has several names for it (tied weights)."""
    keepers: dict[Any, fx.Node] = {}
    for node in graph.operations.find_nodes(op="get_attr"):
        value: Any = graph.constants[str(node.target)]  # a tensor, or a branch of control flow
        is_tensor = isinstance(value, Tensor) and value.numel() > 0
        key: Any = tensor_key(value) if is_tensor else str(node.target)
        if key in keepers:
            node.replace_all_uses_with(keepers[key])
            graph.operations.erase_node(node)
        else:
            keepers[key] = node


def tensor_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two names of one tensor; not to be used for tensors without elements, which have no address."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _check_deterministic(graph: Graph) -> None:
    """Refuse random numbers: each run would compute another network, and none could be compared with another."""
    for node in graph.operations.nodes:
        if is_random(node):
            if bind(node).get("generator") is not None:
                raise CaptureError(
                    f"the model draws random numbers from a generator of its own: {node.target}{_at(node)}. A graph "
                    "has no generators. If every call gives the same numbers, draw them once, in the model's "
                    "`__init__`, and keep them in a buffer; noise can become an input of forward."
                )
            raise CaptureError(
                f"the model draws random numbers in evaluation mode: {node.target}{_at(node)}. No two runs agree, so "
                "there is no output to reproduce. Dropout must know the mode (`nn.Dropout`, or `F.dropout(x, p, "
                "training=self.training)`); noise that belongs to the model can become an input of forward."
            )


def _at(node: fx.Node) -> str:
    place = place_of(node)
    return f" at {place}" if place else ""
