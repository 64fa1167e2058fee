"""Where integer hardware needs activations as codes, and what stands there.

The rule: *a tensor is quantized if an integer operation reads it.*

- Integer operations are the quantized layers, additions, subtractions and products of two tensors, products of
  matrices, and averages over places. What else there is (softmax, normalisation, functions that are no clamp) computes
  in float on what it is given, and what it gives is quantized where an integer operation reads it.
- Operations that only move numbers (reshapes, permutations, slices, maximum pooling, padding with zeros, nearest
  upsampling, concatenation) give numbers of the grid that they were given. So the quantizer stands before them, at the
  operation that made the numbers; and tensors that a concatenation joins share one range if the result is quantized.
- A function that follows a layer or an addition, such as a ReLU, is fused with it: the quantizer stands after the
  function, since nothing but the function reads the layer.
- What nobody but the caller reads, the network's output, stays in float.

What does not depend on the network's inputs, but for their sizes (buffers, masks), stays in float where it is added,
multiplied or joined; hardware takes it into the bias or the scale. Attention as one operation
(`scaled_dot_product_attention`), `einsum` and `baddbmm` compute in float as well.

In the quantized network a quantizer is `roundwise.quantize` → `roundwise.dequantize`, operations of our own
(`artifacts/dialect.py`). It stands after the operation that makes the tensor, and all that reads the tensor reads it
quantized. In ONNX that is QuantizeLinear → DequantizeLinear. ONNX Runtime pushes the pair through operations that move
numbers, and fuses what stands between DequantizeLinear and QuantizeLinear into integer kernels where it has them
(convolutions and matrix products with 8-bit weights); elsewhere it computes in float on exactly the numbers that the
codes stand for.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, fx

from roundwise.graph.graph import Graph
from roundwise.graph.operators import AVERAGES, INTEGER_OF_TWO, MOVES, OF_A_SHAPE, PADS, SPLITS, padded_number


class Tensors(NamedTuple):
    """Tensors between operations that share one range.

    Attributes:
        nodes: the operations or inputs that give them, in order.
        readers: the integer operations that read one of them, perhaps after its numbers were moved; in order.
    """

    nodes: list[fx.Node]
    readers: list[fx.Node]


def find_activations(graph: Graph, layers: Collection[fx.Node]) -> list[Tensors]:
    """The tensors to quantize; those that share a range together.

    Args:
        graph: in normal form.
        layers: the calls of quantized layers.
    """
    group_of: dict[fx.Node, list[fx.Node]] = {}
    readers: dict[fx.Node, list[fx.Node]] = {}
    computed = _computed(graph)
    for node in graph.operations.nodes:
        for read in _read_as_codes(node, layers, computed):
            joined: list[fx.Node] = []
            for source in dict.fromkeys(_sources(read, computed)):
                readers.setdefault(source, []).append(node)
                joined += [other for other in group_of.get(source, [source]) if other not in joined]
            group_of.update(dict.fromkeys(joined, joined))
    order = {node: number for number, node in enumerate(graph.operations.nodes)}
    groups = {id(group): sorted(group, key=order.__getitem__) for group in group_of.values()}
    found = []
    for nodes in sorted(groups.values(), key=lambda group: order[group[0]]):
        read_by = {reader for node in nodes for reader in readers[node]}
        found.append(Tensors(nodes, sorted(read_by, key=order.__getitem__)))
    return found


def kind_of(node: fx.Node) -> str:
    """The name of an operation without namespace and overload: `add`, `matmul`, `avg_pool2d`."""
    return str(getattr(node.target, "_opname", node.op))


def _computed(graph: Graph) -> set[fx.Node]:
    """What depends on the numbers that the network is given, and not just on their shapes."""
    computed: set[fx.Node] = set()
    for node in graph.operations.nodes:
        tensors = (
            source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor | tuple | list)
        )
        if node.op == "placeholder" or (
            node.op == "call_function" and node.target not in OF_A_SHAPE and any(t in computed for t in tensors)
        ):
            computed.add(node)
    return computed


def _read_as_codes(node: fx.Node, layers: Collection[fx.Node], computed: Collection[fx.Node]) -> Iterable[fx.Node]:
    """The operands that an operation reads as codes."""
    if node in layers or node.target in AVERAGES:
        return node.all_input_nodes[:1]
    if node.target in INTEGER_OF_TWO:
        operands = [
            operand for operand in node.args[:2] if isinstance(operand, fx.Node) and any(_sources(operand, computed))
        ]
        return operands if len(operands) == 2 else ()
    return ()


def _sources(node: fx.Node, computed: Collection[fx.Node]) -> Iterator[fx.Node]:
    """The operations and inputs that made a tensor's numbers, before they were moved."""
    stack, seen = [node], {node}
    while stack:
        last = stack.pop()
        if _moves(last):
            new = [source for source in _moved(last) if source not in seen]
            seen.update(new)
            stack += new
        elif last in computed and _is_real(last):
            yield last


def _moves(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and node.args[0].target in SPLITS
    if node.target in PADS:
        return padded_number(node) in (0, None)
    return node.target in MOVES or node.target in SPLITS


def _moved(node: fx.Node) -> list[fx.Node]:
    """The operands whose numbers an operation moves (and not the indices by which it does)."""
    first = node.args[0]
    return [source for source in (first if isinstance(first, list | tuple) else [first]) if isinstance(source, fx.Node)]


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
