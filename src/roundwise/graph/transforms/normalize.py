"""The same computation in fewer kinds of operations, so that every later step has one form to look for.

- Operations that change no number (detach, copies) disappear.
- Products with a constant matrix (`x @ W`, `W @ x`, `mm`, `addmm`, `bmm`, `einsum`, `tensordot`) become `linear`.
- Batch-norm with running statistics becomes `batch_norm`, whatever form the capture gave it.
- A weight or bias that is computed from constants alone (a slice of a packed projection, weight normalization, a
  transpose, a cast) becomes a constant; so does a whole layer whose input is constant.

A computed constant takes the name of the tensor that it is computed from, `attn.in_proj_weight`. Where several come
from one tensor, they are numbered in the order in which they are used: `attn.in_proj_weight_0` and so on.
`Graph.training` says from which parameters each was computed.

Dropout stays, and what depends on dropout is not constant: a network in normal form may still be trained. For inference
apply `drop_dropout` *before*, so that a weight behind dropout becomes a constant.
"""

from __future__ import annotations

import operator
import re
from typing import Any, final

import torch
from torch import Tensor, fx

from roundwise.graph.graph import Graph, bind, is_random
from roundwise.graph.operators import (
    DROPOUTS,
    FACTORS,
    IDENTITIES,
    MATRIX_COPIES,
    MATRIX_PRODUCTS,
    TENSOR_PRODUCTS,
    WEIGHTED,
)
from roundwise.graph.training import TensorOrigin
from roundwise.graph.transforms.contractions import (
    Contraction,
    contraction_of,
    contraction_with_matrix_first,
    linear_from,
)
from roundwise.graph.transforms.drop_dropout import makes_distinct_output

aten = torch.ops.aten


def normalize(graph: Graph) -> Graph:
    """Return an equal graph in normal form."""
    graph = graph.copy()
    constants = _Constants(graph)
    for node in list(graph.operations.nodes):
        if node.target in IDENTITIES:
            _drop_identity(graph, node)
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            _rename_batch_norm(graph, node)
        elif node.target in FACTORS:
            _product_to_linear(graph, constants, node)
        elif node.target is aten.einsum.default:
            _einsum_to_linear(graph, constants, node)
        elif node.target in TENSOR_PRODUCTS:
            _contraction_to_linear(graph, constants, node, node.args[:2])
        elif node.target in WEIGHTED:
            _make_constant(constants, node)
    graph.prune()
    constants.rename()
    return graph


@final
class _Constants:
    """What depends on nothing but constants, and the constants that were made of it so far."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        # Nodes that give the same in every run → whether they come from the model's tensors.
        self._fixed: dict[fx.Node, bool] = {}
        for node in graph.operations.nodes:
            inputs = node.all_input_nodes
            if node.op == "get_attr" and graph.constant(node) is not None:
                self._fixed[node] = True
            elif node.op == "call_function" and all(source in self._fixed for source in inputs) and _is_fixed(node):
                self._fixed[node] = any(self._fixed[source] for source in inputs)
        self._values: dict[fx.Node, Any] = {}
        self._made: dict[str, list[fx.Node]] = {}  # name → nodes
        self._origins: dict[fx.Node, TensorOrigin] = {}

    def __contains__(self, node: object) -> bool:
        return isinstance(node, fx.Node) and self._fixed.get(node, False)

    @torch.no_grad()
    def value(self, node: fx.Node) -> Any:
        """What a node gives that depends on constants only."""
        stack = [node]
        while stack:
            last = stack[-1]
            missing = [source for source in last.all_input_nodes if source not in self._values]
            if missing:
                stack += missing
                continue
            stack.pop()
            if last.op == "get_attr":
                self._values[last] = self._graph.constants[str(last.target)]
            elif last not in self._values:
                assert callable(last.target)
                args, kwargs = fx.map_arg((last.args, dict(last.kwargs)), self._values.__getitem__)
                self._values[last] = last.target(*args, **kwargs)
        return self._values[node]

    def replacement(self, source: fx.Node, suffix: str = "") -> fx.Node:
        """A constant with the value of `source`: one that is there, else a new one, named after its origin."""
        return self.store(self.value(source), source, suffix)

    def store(self, value: Tensor, source: fx.Node, suffix: str = "") -> fx.Node:
        """A constant with a value that was computed from `source`."""
        value = value.contiguous()
        sources = self._sources(source)
        origin = max(sources, key=lambda node: self._graph.constants[str(node.target)].numel())
        name = _plain_name(str(origin.target))
        name = f"{name.removesuffix('.weight')}{suffix}" if suffix else name
        made = self._made.setdefault(name, [])
        for known in made if name != origin.target else (origin, *made):
            other = self._graph.constants[str(known.target)]
            if value.dtype == other.dtype and value.shape == other.shape and torch.equal(value, other):
                return known
        made.append(self._graph.add_constant(f"{origin.target}_derived", value))
        self._fixed[made[-1]] = True
        self._origins[made[-1]] = self._origin(sources)
        return made[-1]

    def _origin(self, sources: list[fx.Node]) -> TensorOrigin:
        known = self._graph.training.origins
        origins = [known[name] for name in (str(node.target) for node in sources) if name in known]
        names = dict.fromkeys(name for origin in origins for name in origin.names)
        return TensorOrigin(tuple(names), "computed", any(origin.trainable for origin in origins))

    def _sources(self, source: fx.Node) -> list[fx.Node]:
        """The constants that a node depends on."""
        found: list[fx.Node] = []
        stack, seen = [source], {source}
        while stack:
            node = stack.pop()
            if node.op == "get_attr":
                found.append(node)
            stack += [other for other in node.all_input_nodes if other not in seen]
            seen.update(node.all_input_nodes)
        return found

    def rename(self) -> None:
        """Name computed constants after what they are computed from; such a name is free once nobody else reads it."""
        origins: dict[str, TensorOrigin] = {}
        for name, made in self._made.items():
            used = [node for node in made if node.users]
            values = [self._graph.constants.pop(str(node.target)) for node in used]
            alone = len(used) == 1 and name not in self._graph.constants
            for number, (node, value) in enumerate(zip(used, values, strict=True)):
                renamed = self._graph.add_constant(name if alone else f"{name}_{number}", value)
                origins[str(renamed.target)] = self._origins[node]
                node.replace_all_uses_with(renamed)
                self._graph.operations.erase_node(node)
        self._graph.training = self._graph.training.with_origins(origins)


def _is_fixed(node: fx.Node) -> bool:
    """Whether an operation gives the same in every run if its operands do, in training too."""
    return not is_random(node) and node.target not in DROPOUTS


def _plain_name(name: str) -> str:
    """`conv.parametrizations.weight.original1`, `conv.weight_v` and `conv.weight_orig` are all `conv.weight`."""
    name = re.sub(r"parametrizations\.(\w+)\.original\d*$", r"\1", name)
    return re.sub(r"(^|\.)weight_(v|orig)$", r"\1weight", name)


def _drop_identity(graph: Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if node.target is aten.clone.default and not _same_strides(source, node):
        return  # what follows may rely on the new layout
    if makes_distinct_output(node):
        return
    node.replace_all_uses_with(source)
    graph.operations.erase_node(node)


def _same_strides(one: fx.Node, other: fx.Node) -> bool:
    values = one.meta.get("val"), other.meta.get("val")
    first, second = (value.stride() if isinstance(value, Tensor) else None for value in values)
    return first is not None and str(first) == str(second)  # as text: comparing symbolic sizes would fix them


def _product_to_linear(graph: Graph, constants: _Constants, node: fx.Node) -> None:
    arguments = bind(node)
    bias = None if node.target in MATRIX_PRODUCTS else arguments["self"]
    left, right = (node.args[position] for position in FACTORS[node.target])
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    if bias is not None and (arguments["beta"], arguments["alpha"]) != (1, 1):
        return
    if _without_copies(left) in constants:
        _matrix_first_to_linear(graph, constants, node, left, right, bias)
    else:
        _to_linear(graph, constants, node, left, right, bias)


def _matrix_first_to_linear(
    graph: Graph, constants: _Constants, node: fx.Node, matrix: fx.Node, value: fx.Node, bias: fx.Node | None
) -> None:
    """Replace `matrix @ value (+ bias)` by a linear layer between two transpositions."""
    shape, source = value.meta["val"].shape, _without_copies(matrix)
    constant = constants.value(source)
    if len(shape) < 2 or constant.dim() < 2 or constant.numel() != constant.shape[-2:].numel():
        return  # a vector, or several matrices
    if len(node.meta["val"].shape) != len(shape):
        return  # the matrix has more dimensions of size 1
    constant = constant.reshape(constant.shape[-2:])
    _replace(graph, constants, node, value, source, constant, contraction_with_matrix_first(len(shape)), bias)


def _contraction_to_linear(graph: Graph, constants: _Constants, node: fx.Node, operands: Any) -> None:
    """Replace an `einsum` or `tensordot` by a linear layer, if one of its two operands is constant."""
    fixed = [operand in constants for operand in operands]
    if len(operands) != 2 or fixed not in ([True, False], [False, True]):
        return
    value, source = sorted(operands, key=lambda operand: operand in constants)
    how = contraction_of(node, operands.index(value))
    if how is not None:
        _replace(graph, constants, node, value, source, constants.value(source), how)


def _replace(
    graph: Graph,
    constants: _Constants,
    node: fx.Node,
    value: fx.Node,
    source: fx.Node,
    constant: Tensor,
    how: Contraction,
    bias: fx.Node | None = None,
) -> None:
    """Replace a product by a linear layer, if it is one; a bias is added afterwards."""
    known = value.meta.get("val")
    if node in constants or not isinstance(known, Tensor) or not how.is_linear(known.shape):
        return
    if not constant.is_floating_point():
        return
    weight = constants.store(how.matrix(constant), source)
    result = linear_from(graph.operations, node, value, weight, how)
    if bias is not None:
        with graph.operations.inserting_before(node):
            total = graph.operations.call_function(aten.add.Tensor, (result, bias))
        total.meta, result = dict(node.meta), total
    node.replace_all_uses_with(result)
    graph.operations.erase_node(node)


def _einsum_to_linear(graph: Graph, constants: _Constants, node: fx.Node) -> None:
    """`btc,cd->btd` and `btc,dc->btd`, with a constant second operand, need nothing around the layer; others may."""
    equation, operands = node.args[:2]
    assert isinstance(equation, str)
    assert isinstance(operands, list | tuple)
    inputs, _, output = equation.replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    for order in (right, right[::-1]):
        fits = len(order) == len(operands) == 2 and left.endswith(order[0]) and output == left[:-1] + order[1]
        if fits and left.count(order[0]) == 1 and order[1] not in left:
            _to_linear(graph, constants, node, *operands, outputs_first=order != right)
            return
    _contraction_to_linear(graph, constants, node, operands)


def _to_linear(
    graph: Graph,
    constants: _Constants,
    node: fx.Node,
    left: Any,
    right: Any,
    bias: fx.Node | None = None,
    *,
    outputs_first: bool = False,
) -> None:
    """Replace a product by a linear layer, if its right operand is a constant matrix."""
    value, source = left.meta.get("val"), _without_copies(right)
    if node in constants or source not in constants or not isinstance(value, Tensor):
        return
    weight = constants.value(source)
    if not 2 <= weight.dim() <= value.dim() or weight.numel() != weight.shape[-2:].numel():
        return  # several matrices
    if not weight.is_floating_point():
        return  # no layer is of complex numbers
    weight = weight.reshape(weight.shape[-2:])
    # Only a bias for each output is one in `linear`; anything else is added afterwards.
    vector = bias is not None and bias in constants and constants.value(bias).dim() == 1
    with graph.operations.inserting_before(node):
        operands = (left, constants.store(weight if outputs_first else weight.T, source), *([bias] if vector else []))
        linear = result = graph.operations.call_function(aten.linear.default, operands)
        if bias is not None and not vector:
            result = graph.operations.call_function(aten.add.Tensor, (linear, bias))
    linear.meta, result.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(result)
    graph.operations.erase_node(node)
    _make_constant(constants, linear)


def _without_copies(node: fx.Node) -> fx.Node:
    """The matrix of which an operand of `bmm` holds a copy for each sample, if that is what it is."""
    matrix = _matrix_shape(node)
    while node.target in MATRIX_COPIES and _matrix_shape(node.all_input_nodes[0]) == matrix:
        node = node.all_input_nodes[0]
    return node


def _matrix_shape(node: fx.Node) -> list[str]:
    return [str(size) for size in node.meta["val"].shape[-2:]]


def _rename_batch_norm(graph: Graph, node: fx.Node) -> None:
    users = [user for user in node.users if user.users]
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in users):
        return
    a = bind(node)
    arguments = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"])
    with graph.operations.inserting_before(node):
        norm = graph.operations.call_function(
            aten.batch_norm.default, (*arguments, False, a["momentum"], a["eps"], False), name=f"{node.name}_bn"
        )
    for user in users:
        norm.meta = dict(user.meta)
        user.replace_all_uses_with(norm)


def _make_constant(constants: _Constants, node: fx.Node) -> None:
    """Make a layer's computed weight and bias constants; or the layer, if all that it depends on is constant."""
    if node in constants:
        node.replace_all_uses_with(constants.replacement(node, ".output"))
        return
    for name in ("weight", "bias"):
        source = bind(node)[name]
        if isinstance(source, fx.Node) and source.op != "get_attr" and source in constants:
            node.replace_input_with(source, constants.replacement(source))
