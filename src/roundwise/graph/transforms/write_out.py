"""Operations that hardly any network has, written out in operations that every table knows.

Many of them come from in-place methods of tensors: `y[:, 0].zero_()`, `index_fill_`, `masked_scatter_`. Without this, a
network that holds one could not be kept in a file, and few exporters know it.

    zero(x)                                zeros_like(x)
    index_fill, index_copy, index_add      index_put along one dimension
    put(x, places, source)                 index_put in the flat tensor
    masked_scatter(x, mask, source)        where(mask, source[number of the place among those of the mask], x)
    scatter(x, …, value, reduce="add")     scatter_add of a tensor that holds the value
    ldexp(x, n)                            x · 2ⁿ
    addmv, addr, addbmm                    β x + α (product)
    _convolution, as torch.jit.trace has   conv2d, conv_transpose2d and the like
    rrelu(x) in evaluation                 leaky_relu(x, (lower + upper) / 2)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import fx

from roundwise.graph.graph import Graph, bind
from roundwise.graph.shapes import infer

aten = torch.ops.aten

Arguments = Mapping[str, Any]


def write_out(graph: Graph) -> None:
    """Replace the operations of the table above in a graph."""
    for node in list(graph.operations.nodes):
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        if rule is None:
            continue
        with graph.operations.inserting_before(node):
            replacement = rule(_Call(graph), bind(node))
        if replacement is None:
            continue
        read = node
        if node.target is aten.rrelu_with_noise_functional.default:  # it also gives the noise
            firsts = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
            if len(firsts) != 1 or len(node.users) != 1:
                continue
            (read,) = firsts
        read.replace_all_uses_with(replacement)
    graph.prune()


@final
class _Call:
    """Adds calls of operations to a graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __call__(self, operation: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self._graph.operations.call_function(operation, args, kwargs)
        node.meta["val"] = infer(self._graph, node)
        return node


def _zero(call: _Call, a: Arguments) -> fx.Node:
    return call(aten.zeros_like.default, a["self"])


def _along(a: Arguments) -> list[Any]:
    """The indices of `index_put` for an index along one dimension."""
    dims = a["self"].meta["val"].dim()
    return [None] * (a["dim"] % dims) + [a["index"]]


def _index_fill(call: _Call, a: Arguments) -> fx.Node | None:
    value, like = a["value"], a["self"].meta["val"]
    if not like.dim():
        return None
    if not isinstance(value, fx.Node):
        value = call(aten.full.default, [], value, dtype=like.dtype, device=like.device)
    elif value.meta["val"].dtype != like.dtype:
        value = call(aten.to.dtype, value, like.dtype)
    return call(aten.index_put.default, a["self"], _along(a), value)


def _index_copy(call: _Call, a: Arguments) -> fx.Node | None:
    if not a["self"].meta["val"].dim() or not a["index"].meta["val"].dim():
        return None
    return call(aten.index_put.default, a["self"], _along(a), a["source"])


def _index_add(call: _Call, a: Arguments) -> fx.Node | None:
    if not a["self"].meta["val"].dim() or not a["index"].meta["val"].dim():
        return None
    source = a["source"] if a["alpha"] == 1 else call(aten.mul.Tensor, a["source"], a["alpha"])
    return call(aten.index_put.default, a["self"], _along(a), source, True)


def _put(call: _Call, a: Arguments) -> fx.Node:
    flat, index, source = (call(aten.reshape.default, a[name], [-1]) for name in ("self", "index", "source"))
    filled = call(aten.index_put.default, flat, [index], source, a["accumulate"])
    return call(aten.view_as.default, filled, a["self"])


def _masked_scatter(call: _Call, a: Arguments) -> fx.Node:
    mask = call(aten.expand_as.default, a["mask"], a["self"])
    number = call(aten.cumsum.default, call(aten.reshape.default, mask, [-1]), 0)
    place = call(aten.clamp.default, call(aten.sub.Tensor, number, 1), 0)
    source = call(aten.index.Tensor, call(aten.reshape.default, a["source"], [-1]), [place])
    return call(aten.where.self, mask, call(aten.view_as.default, source, a["self"]), a["self"])


def _scatter(call: _Call, a: Arguments) -> fx.Node | None:
    if a["reduce"] != "add":
        return None
    dtype = a["self"].meta["val"].dtype
    value = call(aten.full_like.default, a["index"], a["value"], dtype=dtype)
    return call(aten.scatter_add.default, a["self"], a["dim"], a["index"], value)


def _ldexp(call: _Call, a: Arguments) -> fx.Node:
    return call(aten.mul.Tensor, a["self"], call(aten.pow.Scalar, 2.0, a["other"]))


def _added(call: _Call, a: Arguments, product: fx.Node) -> fx.Node:
    """β x + α (product)."""
    values = a["self"] if a["beta"] == 1 else call(aten.mul.Tensor, a["self"], a["beta"])
    return call(aten.add.Tensor, values, product if a["alpha"] == 1 else call(aten.mul.Tensor, product, a["alpha"]))


def _addmv(call: _Call, a: Arguments) -> fx.Node:
    return _added(call, a, call(aten.mv.default, a["mat"], a["vec"]))


def _addr(call: _Call, a: Arguments) -> fx.Node:
    return _added(call, a, call(aten.outer.default, a["vec1"], a["vec2"]))


def _addbmm(call: _Call, a: Arguments) -> fx.Node:
    products = call(aten.bmm.default, a["batch1"], a["batch2"])
    return _added(call, a, call(aten.sum.dim_IntList, products, [0]))


def _convolution(call: _Call, a: Arguments) -> fx.Node:
    dims, order = a["input"].meta["val"].dim() - 2, ["stride", "padding", "dilation", "groups"]
    name = f"conv{dims}d"
    if a.get("transposed"):
        name, order = f"conv_transpose{dims}d", ["stride", "padding", "output_padding", "groups", "dilation"]
    overloads = getattr(aten, name)
    wanted = "padding" if isinstance(a["padding"], str) else "default"
    operation = getattr(overloads, wanted if wanted in overloads.overloads() else "input")
    return call(operation, a["input"], a["weight"], a["bias"], *(a[it] for it in order))


def _rrelu(call: _Call, a: Arguments) -> fx.Node | None:
    if a["training"]:
        return None
    return call(aten.leaky_relu.default, a["self"], (a["lower"] + a["upper"]) / 2)


_RULES: Mapping[Any, Callable[[_Call, Arguments], fx.Node | None]] = {
    aten.zero.default: _zero,
    aten.index_fill.int_Scalar: _index_fill,
    aten.index_fill.int_Tensor: _index_fill,
    aten.index_copy.default: _index_copy,
    aten.index_add.default: _index_add,
    aten.put.default: _put,
    aten.masked_scatter.default: _masked_scatter,
    aten.scatter.value_reduce: _scatter,
    aten.ldexp.Tensor: _ldexp,
    aten.addmv.default: _addmv,
    aten.addr.default: _addr,
    aten.addbmm.default: _addbmm,
    aten._convolution.default: _convolution,
    aten._convolution.deprecated: _convolution,
    aten._convolution_mode.default: _convolution,
    aten.rrelu.default: _rrelu,
    aten.rrelu_with_noise_functional.default: _rrelu,
}
"""For each operation the function that writes it out; None means that it stays."""
