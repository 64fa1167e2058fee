"""The same computation in fewer kinds of operations, so that every later step has one form to look for.

- operations that do nothing in evaluation (dropout, detach, copies) disappear
- `x @ W`, `addmm` and `mm` with a constant right operand become `linear`
- every form of batch-norm in evaluation becomes `batch_norm`
- a weight that is computed from constants alone (a slice of a packed projection, weight-norm, a transpose) becomes a
  constant
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from roundwise.graph.capture import Graph, bind

aten = torch.ops.aten

_IDENTITIES = {aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default}
_PRODUCTS = {aten.matmul.default, aten.mm.default, aten.addmm.default}
# (operation, position of its weight)
WEIGHTED = {
    aten.linear.default: 1,
    aten.conv1d.default: 1,
    aten.conv1d.padding: 1,
    aten.conv2d.default: 1,
    aten.conv2d.padding: 1,
    aten.conv3d.default: 1,
    aten.conv3d.padding: 1,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1,
    aten.conv_transpose3d.input: 1,
    aten.convolution.default: 1,
}


def normalize(graph: Graph) -> Graph:
    """Return an equal graph in normal form."""
    graph = graph.copy()
    for node in list(graph.operations.nodes):
        if node.op != "call_function":
            continue
        if node.target in _IDENTITIES or (node.target is aten.dropout.default and not bind(node)["train"]):
            _drop_identity(graph, node)
        elif node.target in _PRODUCTS:
            _product_to_linear(graph, node)
        elif node.target is aten._native_batch_norm_legit_no_training.default:
            _rename_batch_norm(graph, node)
    for node in list(graph.operations.nodes):
        if node.target in WEIGHTED:
            for name in ("weight", "bias"):
                _fold_constant(graph, node, name)
    graph.prune()
    return graph


def _drop_identity(graph: Graph, node: fx.Node) -> None:
    if node.kwargs.get("memory_format") in (None, torch.preserve_format):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        # A constant or an input that is an output stays a copy of its own.
        if source.op == "call_function" or all(user.op != "output" for user in node.users):
            node.replace_all_uses_with(source)
            graph.operations.erase_node(node)


def _product_to_linear(graph: Graph, node: fx.Node) -> None:
    bias = None
    if node.target is aten.addmm.default:
        a = bind(node)
        if a["beta"] != 1 or a["alpha"] != 1:
            return
        bias, inputs, right = a["self"], a["mat1"], a["mat2"]
        vector = evaluate_constant(graph, bias)
        if vector is None or vector.dim() != 1:
            return
    else:
        inputs, right = node.args[0], node.args[1]
    weight = evaluate_constant(graph, right)
    value = inputs.meta.get("val") if isinstance(inputs, fx.Node) else None
    if weight is None or weight.dim() != 2 or not isinstance(value, Tensor) or value.dim() < 2:
        return
    name = constant_name(graph, right, node)
    transposed = graph.add_constant(name, weight.T.contiguous())
    with graph.operations.inserting_before(node):
        linear = graph.operations.call_function(
            aten.linear.default, (inputs, transposed, *([] if bias is None else [bias]))
        )
    linear.meta = dict(node.meta)
    node.replace_all_uses_with(linear)
    graph.operations.erase_node(node)


def _rename_batch_norm(graph: Graph, node: fx.Node) -> None:
    users = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in users if user.users):
        return
    a = bind(node)
    arguments = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"])
    with graph.operations.inserting_before(node):
        norm = graph.operations.call_function(
            aten.batch_norm.default, (*arguments, False, a["momentum"], a["eps"], False), name=node.name + "_bn"
        )
    for user in users:
        if user.users:
            norm.meta = dict(user.meta)
            user.replace_all_uses_with(norm)
        graph.operations.erase_node(user)
    graph.operations.erase_node(node)


def _fold_constant(graph: Graph, node: fx.Node, argument: str) -> None:
    source = bind(node).get(argument)
    if not isinstance(source, fx.Node) or source.op == "get_attr":
        return
    value = evaluate_constant(graph, source)
    if value is not None:
        name = constant_name(graph, source, node)
        node.replace_input_with(source, graph.add_constant(name, value.contiguous()))


def evaluate_constant(graph: Graph, source: object) -> Tensor | None:
    """The value of a node that depends on nothing but constants, else None."""
    if not isinstance(source, fx.Node):
        return None
    order: list[fx.Node] = []
    seen: set[fx.Node] = set()

    def visit(node: fx.Node) -> bool:
        if node in seen:
            return True
        seen.add(node)
        if node.op == "get_attr":
            if graph.constant(node) is None:
                return False
        elif node.op != "call_function" or not _is_deterministic(node) or not all(map(visit, node.all_input_nodes)):
            return False
        order.append(node)
        return True

    if not visit(source) or not any(node.op == "get_attr" for node in order):
        return None
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in order:
            if node.op == "get_attr":
                values[node] = graph.constants[str(node.target)]
            else:
                assert callable(node.target)
                args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
                values[node] = node.target(*args, **kwargs)
    value = values[source]
    return value if isinstance(value, Tensor) else None


def _is_deterministic(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def constant_name(graph: Graph, source: object, node: fx.Node) -> str:
    """A name for a derived weight: that of the largest constant it comes from, and the operation that reads it."""
    names: list[str] = []
    stack, seen = [source], set()
    while stack:
        current = stack.pop()
        if isinstance(current, fx.Node) and current not in seen:
            seen.add(current)
            if current.op == "get_attr" and graph.constant(current) is not None:
                names.append(str(current.target))
            stack.extend(current.all_input_nodes)
    largest = max(names, key=lambda name: graph.constants[name].numel(), default=node.name)
    return f"{largest}_{node.name}"
