"""A network as one flat list of pure operations, and the tensors they read."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from roundwise.graph.sizes import Limits, Range, VariableSize
from roundwise.graph.training import TrainingInformation

RESERVED: frozenset[str] = frozenset({"inf", "nan", "NoneType", "torch", "fx_pytree", "pytree"})
"""Names that the code of a graph reads, and that are no functions: an argument of that name would be read instead."""


@final
@dataclass(frozen=True)
class InputSpec:
    """One tensor that the network takes.

    Attributes:
        name: of the placeholder.
        shape: of the samples that the graph was captured with; None for the batch dimension.
        dtype: of the tensor.
        variable: the dimensions that may have other sizes.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    variable: tuple[VariableSize, ...] = ()

    @property
    def sizes(self) -> dict[int, Range]:
        """The sizes that each dimension may have, besides the batch."""
        fixed = {dim: Range(size, size) for dim, size in enumerate(self.shape) if size is not None}
        return fixed | {size.dim: size.sizes for size in self.variable}

    @property
    def names(self) -> dict[int, str]:
        """The names of the dynamic dimensions."""
        return {size.dim: size.name for size in self.variable if size.name}

    def example(self, batch: int) -> Tensor:
        """Zeros of this shape."""
        return torch.zeros([batch if size is None else size for size in self.shape], dtype=self.dtype)

    def in_words(self, batch: object = "samples") -> str:
        """Dtype and shape, such as `float32 [samples, 3, height, 32]`."""
        sizes = [batch if size is None else self.names.get(dim, size) for dim, size in enumerate(self.shape)]
        return f"{str(self.dtype).removeprefix('torch.')} [{', '.join(map(str, sizes))}]"

    def misfit(self, tensor: Tensor) -> str:
        """What does not fit in a tensor, such as "dimension 2 has size 12"; empty if it fits. Any batch size does."""
        if tensor.dtype != self.dtype:
            return f"the dtype is {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.dim() != len(self.shape):
            return f"the number of dimensions is {tensor.dim()}"
        wrong = (dim for dim, sizes in self.sizes.items() if dim and not sizes.holds(tensor.shape[dim]))
        return next((f"dimension {dim} has size {tensor.shape[dim]}" for dim in wrong), "")


@final
@dataclass(frozen=True)
class ConstantInput:
    """An input that is not a tensor: its value was fixed when the network was captured."""

    value: bool | int | float | str | None


@final
@dataclass(frozen=True)
class CallStructure:
    """How the flat inputs and outputs of a graph make up the arguments and the result of a call.

    Attributes:
        arguments: the names of the arguments, positional ones first.
        in_spec: how `(args, kwargs)` nest; one leaf for each placeholder, in order.
        out_spec: how the result nests; None where the graph's output node shows it.
        parameters: the names of all parameters that can be given by position, in order; empty if they are not known.
        defaults: of the parameters that have one; also of those that were not given.
    """

    arguments: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec | None = None
    parameters: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def positional(cls, names: Sequence[str]) -> CallStructure:
        """Of a call with one tensor for each placeholder, all by position."""
        return cls(tuple(names), pytree.tree_structure(((0,) * len(names), {})))


@final
@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """How a layer's output is distributed, channel by channel, over all samples and places.

    Attributes:
        mean, std: float64 `[channels]`; `std` is 0 or more.
    """

    mean: Tensor
    std: Tensor

    def scaled(self, factor: Tensor) -> ChannelMoments:
        """Of the output times a factor for each channel."""
        return ChannelMoments(self.mean * factor, self.std * factor.abs())

    def shifted(self, by: Tensor) -> ChannelMoments:
        """Of the output plus a number for each channel."""
        return ChannelMoments(self.mean + by, self.std)


@final
@dataclass(frozen=True, eq=False)
class _Recorded:
    """Moments, and the constants that the layer read when they were recorded.

    The references are weak: moments that no longer hold must not keep old weights in memory.
    """

    moments: ChannelMoments
    read: tuple[weakref.ref[Tensor], ...]


@final
@dataclass
class Graph:
    """A network: pure operations in order, and the tensors they read.

    Attributes:
        operations: nodes are `placeholder` (inputs, flattened), `get_attr` (constants, one node each, named as in the
            model), `call_function` (ATen operations without side effects) and `output`.
        constants: parameters and buffers by name.
        inputs: what each placeholder takes, in order.
        structure: how the network is called.
        batch: None where any batch size will do; else the only one that works.
        limits: how many samples a call may have, and whether inputs must be contiguous.
        notes: what a reader of the report must know about the capture, in sentences.
        training: what training must know besides. Constants that were dropped from the graph may still have entries.
    """

    operations: fx.Graph
    constants: dict[str, Tensor]
    inputs: tuple[InputSpec | ConstantInput, ...]
    structure: CallStructure
    batch: int | None = None
    limits: Limits = field(default_factory=Limits)
    notes: tuple[str, ...] = ()
    training: TrainingInformation = field(default_factory=TrainingInformation)
    _moments: dict[str, _Recorded] = field(default_factory=dict)

    @classmethod
    def of_module(
        cls,
        module: fx.GraphModule,
        inputs: tuple[InputSpec | ConstantInput, ...] = (),
        structure: CallStructure | None = None,
        batch: int | None = None,
    ) -> Graph:
        """The graph that a module runs, and the tensors it holds now.

        Args:
            module: with nodes as in a `Graph`.
            inputs: what each placeholder takes.
            structure: how it is called; by default with one positional argument for each placeholder.
            batch: the only batch size that works, if there is only one.
        """
        constants: dict[str, Tensor] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                owner: Any = module
                for part in str(node.target).split("."):
                    owner = getattr(owner, part)
                constants[str(node.target)] = owner.detach() if isinstance(owner, Tensor) else owner
        if structure is None:
            structure = CallStructure.positional([str(n.target) for n in module.graph.find_nodes(op="placeholder")])
        return cls(module.graph, constants, inputs, structure, batch)

    def copy(self) -> Graph:
        """A graph that can be changed without changing this one; tensors are shared."""
        return replace(
            self, operations=_copy_fx(self.operations), constants=dict(self.constants), _moments=dict(self._moments)
        )

    def module(self) -> fx.GraphModule:
        """A module that runs the graph and is called as the model was."""
        operations, structure = _copy_fx(self.operations), self.structure
        operations.set_codegen(
            _PyTreeCodeGen(_PyTreeInfo(list(structure.arguments), structure.in_spec, structure.out_spec))
        )
        return fx.GraphModule({name: _frozen(value) for name, value in self.constants.items()}, operations)

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

    @property
    def moments(self) -> dict[str, ChannelMoments]:
        """The mean and deviation of the outputs of layers, by the names of their weights, as far as they are known.

        They come from batch-norms or from samples (`graph/analysis/moments.py`). They hold as long as the layer reads
        the same weight and bias as when they were recorded. With another weight or bias, or another call of the weight,
        they are gone; `graph/edit.py` records them anew where it knows how the output changed.
        """
        found: dict[str, ChannelMoments] = {}
        for node in self.operations.nodes:
            recorded = self._moments.get(str(node.target)) if node.op == "get_attr" else None
            if recorded is not None and [id(ref()) for ref in recorded.read] == [id(one) for one in self._read(node)]:
                found[str(node.target)] = recorded.moments
        return found

    def record_moments(self, weight: str, moments: ChannelMoments) -> None:
        """Note how the output of a layer is distributed, with the weight and bias that it has now."""
        node = next(node for node in self.operations.nodes if node.op == "get_attr" and node.target == weight)
        self._moments[weight] = _Recorded(moments, tuple(map(weakref.ref, self._read(node))))

    def forget_moments(self, weights: Iterable[str]) -> None:
        """Drop the moments of the layers with these weights, where any are recorded."""
        for weight in weights:
            self._moments.pop(weight, None)

    def _read(self, constant: fx.Node) -> list[Tensor]:
        """All constants that the operations read that read this one."""
        sources = (source for user in constant.users for source in user.all_input_nodes if source.op == "get_attr")
        return [self.constants[str(source.target)] for source in sources]


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


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give an operation another argument, by the argument's name in the operation's schema."""
    assert isinstance(node.target, torch._ops.OpOverload)
    position = [argument.name for argument in node.target._schema.arguments].index(name)
    if position <= len(node.args):
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def may_be_view(node: fx.Node) -> bool:
    """Whether an operation may return the memory of its first argument."""
    schema = getattr(node.target, "_schema", None)
    views = schema is not None and any(value.alias_info is not None for value in schema.returns)
    return views or node.target is operator.getitem


def is_random(node: fx.Node) -> bool:
    """Whether an operation draws random numbers with these arguments."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    arguments = bind(node)
    trains = all(arguments.get(name, True) for name in ("train", "training"))
    return trains and all(arguments.get(name) != 0 for name in ("p", "dropout_p", "dropout"))


def _copy_fx(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        values[node] = copy.node_copy(node, lambda n: values[n])
    return copy


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return nn.Parameter(value, requires_grad=False)
    return value
