"""What a network costs to run: multiplications, stored numbers, and memory for activations.

Everything is read from the graph; nothing is run. `costs_of(graph)` says for each operation, and for one sample:

    MACs         multiplications, each with an addition: those of layers, of products of matrices and of attention
    parameters   the real numbers that the operation stores: weights, biases, and those of batch-norms
    bytes        the size of its result

Sizes are those of the samples that the graph was captured with, and a batch of one. Where the graph works for one batch
size only, the numbers of that batch are divided by it. Additions of biases, functions and pooling have no MACs, as is
usual: they are few beside those of the layers. A result counts as memory of its own also where a runtime may share it
with an operand, as after a reshape.

An operation whose sizes depend on values, such as all that follows a mask, cannot be counted. It is listed in
`uncounted`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx

from roundwise.graph.graph import Graph, InputSpec, bind
from roundwise.graph.matrix import LinearMap
from roundwise.graph.operators import ATTENTION, FACTORS, WEIGHTED
from roundwise.graph.shapes import expression
from roundwise.graph.vocabulary import RECURRENT

aten = torch.ops.aten


@final
@dataclass(frozen=True, eq=False)
class OperationCost:
    """What one operation costs.

    Attributes:
        node: the operation.
        macs: multiplications for one sample.
        parameters: real numbers that it stores; numbers that an earlier operation stores too are counted there.
        bytes: the size of its result for one sample.
    """

    node: fx.Node
    macs: int
    parameters: int
    bytes: int


@final
@dataclass(frozen=True, eq=False)
class Costs:
    """What a network costs.

    Attributes:
        operations: in the order of the graph.
        peak_bytes: the largest size of all tensors that are needed at the same time, inputs among them, for one sample.
        uncounted: the names of operations that are missing, because their sizes depend on values.
    """

    operations: tuple[OperationCost, ...]
    peak_bytes: int
    uncounted: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiplications for one sample."""
        return sum(operation.macs for operation in self.operations)

    @property
    def parameters(self) -> int:
        """Real numbers that the network stores."""
        return sum(operation.parameters for operation in self.operations)

    @property
    def bytes(self) -> int:
        """The size of all results of operations together, for one sample."""
        return sum(operation.bytes for operation in self.operations)

    def of(self, nodes: Sequence[fx.Node]) -> tuple[int, int]:
        """MACs and parameters of some operations together, such as all calls of a layer."""
        chosen = [operation for operation in self.operations if operation.node in nodes]
        return sum(one.macs for one in chosen), sum(one.parameters for one in chosen)


def costs_of(graph: Graph) -> Costs:
    """What a network costs to run on one sample.

    Args:
        graph: whose `meta["val"]` are up to date.

    Example:
        >>> import roundwise as rw
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU()).eval()
        >>> costs = costs_of(rw.capture(model, torch.randn(2, 3, 10, 10)).graph)
        >>> costs.macs == 8 * 10 * 10 * 3 * 3 * 3, costs.parameters
        (True, 224)
    """
    sizes, batch = _Sizes(graph), graph.batch or 1
    operations, uncounted, stored = [], [], set[str]()
    bytes_of: dict[fx.Node, int] = {}
    for node in graph.operations.nodes:
        if node.op == "placeholder":
            bytes_of[node] = (sizes.bytes(node) or 0) // batch
        if node.op != "call_function":
            continue
        new = {str(source.target) for source in node.all_input_nodes if source.op == "get_attr"} - stored
        stored |= new
        parameters = sum(_real_numbers(graph.constants[name]) for name in new)
        macs, size = _macs(node, sizes), sizes.bytes(node)
        if macs is None or size is None:
            uncounted.append(node.name)
        bytes_of[node] = (size or 0) // batch
        operations.append(OperationCost(node, (macs or 0) // batch, parameters, bytes_of[node]))
    return Costs(tuple(operations), _peak(graph, bytes_of), tuple(uncounted))


def shape_for_one_sample(graph: Graph, value: fx.Node) -> list[int] | None:
    """The sizes of a value for a batch of one; None if some depend on values."""
    return _Sizes(graph).shape(value)


def costs_of_chain(graph: Graph, source: fx.Node, parts: Sequence[LinearMap]) -> list[tuple[int, int]]:
    """MACs and parameters of layers that would run one after the other on a value, for one sample.

    Args:
        graph: that gives the value.
        source: the value.
        parts: the layers, no transposed convolutions. Biases are not counted.

    Returns:
        A pair for each layer; nothing if the sizes of the value depend on values.
    """
    shape, costs = _Sizes(graph).shape(source), []
    if shape is None:
        return []
    dims = parts[0].dims
    space = tuple(shape[len(shape) - dims :])
    items = math.prod(shape[: len(shape) - 1 - dims])  # such as the tokens of a text; and the batch, if it is fixed
    for part in parts:
        space = part.output_space(space)
        numbers = math.prod(part.weight_shape)
        costs.append((numbers * math.prod(space) * items // (graph.batch or 1), numbers))
    return costs


@final
class _Sizes:
    """The sizes of values as whole numbers: those of the samples, with a batch of one."""

    def __init__(self, graph: Graph) -> None:
        self._numbers: dict[Any, int] = {}  # symbol → number
        inputs = graph.operations.find_nodes(op="placeholder")
        for node, spec in zip(inputs, graph.inputs, strict=False):
            value = node.meta.get("val")
            if isinstance(spec, InputSpec) and isinstance(value, Tensor):
                for size, number in zip(value.shape, spec.shape, strict=True):
                    if not isinstance(expression(size), int):
                        self._numbers[expression(size)] = 1 if number is None else number

    def shape(self, node: Any) -> list[int] | None:
        """The sizes of a value; None if some depend on values."""
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(value, Tensor):
            return None
        sizes = [self._number(expression(size)) for size in value.shape]
        return None if None in sizes else sizes  # type: ignore[return-value]

    def count(self, node: Any) -> int | None:
        """How many numbers a value has."""
        shape = self.shape(node)
        return None if shape is None else math.prod(shape)

    def bytes(self, node: fx.Node) -> int | None:
        """The size of a value, or of several; 0 where it is not a tensor, or one of several that were counted."""
        total = 0
        if node.target is operator.getitem:
            return 0
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor):
                sizes = [self._number(expression(size)) for size in value.shape]
                if None in sizes:
                    return None
                total += math.prod(sizes) * value.element_size()  # type: ignore[arg-type]
        return total

    def _number(self, size: Any) -> int | None:
        if isinstance(size, int):
            return size
        found = size.subs(self._numbers)
        return int(found) if found.is_Integer else None


def _macs(node: fx.Node, sizes: _Sizes) -> int | None:
    """Multiplications of an operation on the whole batch; None if they depend on values."""
    arguments = bind(node)
    if node.target in WEIGHTED:
        weight = sizes.shape(arguments["weight"])
        transposed = arguments.get("transposed", "transpose" in str(node.target))
        ends = sizes.count(
            node.args[0] if transposed else node
        )  # of a transposed one, each input is used equally often
        return None if weight is None or ends is None else ends * math.prod(weight[1:] if len(weight) > 1 else weight)
    if node.target in FACTORS:
        first, results = sizes.shape(node.args[FACTORS[node.target][0]]), sizes.count(node)
        return None if first is None or results is None else results * first[-1]
    if node.target in ATTENTION:
        query, key, results = sizes.shape(node.args[0]), sizes.shape(node.args[1]), sizes.count(node)
        if query is None or key is None or results is None:
            return None
        return math.prod(query) * key[-2] + results * key[-2]
    if node.target in RECURRENT:
        inputs = sizes.shape(node.args[0])
        weights = [one for one in map(sizes.shape, arguments["params"]) if one is not None and len(one) == 2]
        return None if inputs is None else math.prod(inputs[:-1]) * sum(map(math.prod, weights))
    if node.target is aten.einsum.default:
        return _einsum_macs(node, sizes)
    return 0


def _einsum_macs(node: fx.Node, sizes: _Sizes) -> int | None:
    """One multiplication for each combination of the letters of two operands."""
    letters = str(node.args[0]).replace(" ", "").partition("->")[0].split(",")
    operands: Any = node.args[1]
    shapes = [sizes.shape(operand) for operand in operands]
    if len(letters) != 2 or any("." in one for one in letters) or None in shapes:
        return None
    named: Mapping[str, int] = {
        letter: size
        for one, shape in zip(letters, shapes, strict=True)
        for letter, size in zip(one, shape or (), strict=True)
    }
    return math.prod(named.values())


def _real_numbers(constant: Any) -> int:
    return constant.numel() if isinstance(constant, Tensor) and constant.is_floating_point() else 0


def _peak(graph: Graph, bytes_of: Mapping[fx.Node, int]) -> int:
    """The largest size of all tensors that are needed at the same time; each goes after its last use."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.operations.nodes:
        for source in node.all_input_nodes:
            last[source] = node
    gone: dict[fx.Node, list[fx.Node]] = {}
    for source, node in last.items():
        gone.setdefault(node, []).append(source)
    live = peak = sum(bytes_of.get(node, 0) for node in graph.operations.find_nodes(op="placeholder"))
    for node in graph.operations.nodes:
        if node.op == "call_function":
            live += bytes_of[node]
            peak = max(peak, live)
        live -= sum(bytes_of.get(source, 0) for source in gone.get(node, ()))
    return peak
