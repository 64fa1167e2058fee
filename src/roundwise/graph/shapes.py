"""Shapes after an edit: what every operation gives now, and the sizes that are written into operations.

Each node keeps a tensor without numbers in `meta["val"]`: shape, dtype and memory order, with a symbol for the batch
and for every other dynamic size. `refresh` computes all of them anew, from the inputs on:

1. Take what each input was captured with. Symbols stay the same symbols, so what was dynamic stays dynamic.
2. Go through the operations in order. Where the input of a reshape (`view`, `reshape`, `unflatten`, `expand`) has
   changed its shape, change the sizes among its arguments that follow from it.
3. Run the operation on tensors without numbers.

*Which size of a reshape follows.* Old input shape and old output shape fall into blocks of dimensions with equal
products: [batch, 64, 7, 7] → [batch, 3136] has the blocks [batch] → [batch] and [64, 7, 7] → [3136]. If the product of
an input block has changed by some factor, so must that of the output block. If that block has one dimension larger than
1, the factor is its factor. If it has several, as in [512] → [8, 64], someone must say which: `refresh` takes the
dimension in which channels were removed, for each tensor.

    [64, 7, 7] → [3136]          becomes  [48, 7, 7] → [2352]
    [512] → [8, 64]              becomes  [384] → [6, 64]  or  [384] → [8, 48]
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from roundwise.errors import ModelError
from roundwise.graph.graph import Graph, bind, set_argument
from roundwise.graph.operators import SIZED_RESHAPES

aten = torch.ops.aten


def refresh(graph: Graph, axes: Mapping[fx.Node, int] | None = None) -> None:
    """Compute `meta["val"]` of all nodes anew, and change sizes in arguments that depend on a size that has changed.

    Args:
        graph: is changed; placeholders keep what they have.
        axes: for tensors some of whose channels were removed, the dimension that has become smaller.

    Raises:
        ModelError: an operation does not work on its new inputs, or the batch is dynamic no longer; names the
            operation.
    """
    mode, old = _fake_mode(graph), {node: node.meta.get("val") for node in graph.operations.nodes}
    for node in graph.operations.nodes:
        if node.op == "get_attr":
            node.meta["val"] = _fake(mode, graph.constants[str(node.target)])
        elif node.op == "call_function":
            _adapt_sizes(node, old, None if axes is None else axes.get(node))
            node.meta["val"] = _run(graph, node, mode)
    for node in graph.operations.find_nodes(op="placeholder"):
        for size in node.meta["val"].shape if isinstance(node.meta["val"], Tensor) else ():
            if isinstance(size, torch.SymInt) and size.node.expr.is_number:
                raise ModelError(
                    f"after the edit the network works for one size of '{node.name}' only, {size}, where any size "
                    "worked before: an operation compares sizes that the edit has made different. Leave the layers "
                    "around that operation as they are."
                )


def infer(graph: Graph, node: fx.Node) -> Any:
    """The value of an operation without its numbers: a tensor with its shape and dtype, or several, or a size."""
    return _run(graph, node, _fake_mode(graph))


def blocks(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[range, range]]:
    """The smallest runs of dimensions that a reshape turns into each other: those with equal products.

    Raises:
        ValueError: the shapes do not hold equally many numbers, or hold none.

    Example:
        >>> blocks([2, 64, 7, 7], [2, 3136])
        [(range(0, 1), range(0, 1)), (range(1, 4), range(1, 2))]
    """
    first, second = _products(before), _products(after)
    if first[-1] != second[-1] or first[-1] == 0:
        raise ValueError(f"a reshape of {list(before)} to {list(after)}")
    cuts, start = [(0, 0)], 1
    for i in range(1, len(first)):
        j = next((j for j in range(start, len(second)) if second[j] == first[i]), None)
        if j is not None:
            cuts.append((i, j))
            start = j + 1
    # What is left at the end are dimensions of size 1: they belong to the last block.
    cuts[-1] = (len(before), len(after)) if len(cuts) > 1 else cuts[-1]
    if len(cuts) == 1:
        cuts.append((len(before), len(after)))
    return [(range(a, c), range(b, d)) for (a, b), (c, d) in itertools.pairwise(cuts)]


def expression(size: Any) -> Any:
    """A size to calculate with: a whole number, or the symbolic expression behind a `SymInt`.

    Comparing two `SymInt` would note for ever that they are equal; comparing their expressions notes nothing.
    """
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _products(sizes: Sequence[Any]) -> list[Any]:
    """1, the first size, the product of the first two, and so on."""
    products: list[Any] = [1]
    for size in sizes:
        products.append(products[-1] * expression(size))
    return products


def _adapt_sizes(node: fx.Node, old: Mapping[fx.Node, Any], axis: int | None) -> None:
    """Change those sizes among a reshape's arguments that follow from its input's; nothing where that has not changed.

    Args:
        node: any operation.
        old: the values of all nodes before the edit.
        axis: the dimension of the output that has become smaller, if it is known.
    """
    source = node.args[0] if node.args else None
    before = old.get(source) if isinstance(source, fx.Node) else None
    after, result = (source.meta["val"], old[node]) if isinstance(before, Tensor) else (None, None)  # type: ignore[union-attr]
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or not isinstance(result, Tensor):
        return
    sizes = [expression(size) for size in before.shape], [expression(size) for size in after.shape]
    if sizes[0] == sizes[1] or len(sizes[0]) != len(sizes[1]):
        return
    if node.target in SIZED_RESHAPES:
        name = "shape" if node.target is aten.reshape.default else "size"
        _set_sizes(node, name, _resized(node, *sizes, result, axis), offset=0)
    elif node.target is aten.unflatten.int:
        _set_sizes(node, "sizes", _resized(node, *sizes, result, axis), offset=bind(node)["dim"] % before.dim())
    elif node.target is aten.expand.default:
        new = result.dim() - before.dim()
        _set_sizes(
            node, "size", {new + i: b for i, (a, b) in enumerate(zip(*sizes, strict=True)) if a != b and a != 1}, 0
        )


def _resized(
    node: fx.Node, before: Sequence[Any], after: Sequence[Any], result: Tensor, axis: int | None
) -> dict[int, int]:
    """The dimensions of a reshape's output that must change, and their new sizes."""
    changes: dict[int, int] = {}
    for inputs, outputs in blocks(before, result.shape):
        old, new = _products(before[inputs.start : inputs.stop])[-1], _products(after[inputs.start : inputs.stop])[-1]
        if old == new:
            continue
        wide = [i for i in outputs if expression(result.shape[i]) != 1]
        chosen = axis if axis in outputs else wide[0] if len(wide) == 1 else None
        size = None if chosen is None else _times(expression(result.shape[chosen]), new, old)
        if chosen is None or size is None:
            raise ModelError(
                f"'{node.name}' ({node.target}) reshapes {list(before)} to {list(result.shape)}, and its input has "
                f"become {list(after)}: which of the new dimensions {list(outputs)} shall change is not known, or none "
                "can by that factor. Remove channels in groups that this shape can hold, or leave them all."
            )
        changes[chosen] = size
    return changes


def _times(size: Any, new: Any, old: Any) -> int | None:
    """size · new / old if that is a whole number, without symbols."""
    if all(isinstance(number, int) for number in (size, new, old)):
        return size * new // old if size * new % old == 0 else None
    quotient = size * new / old  # symbols, which cancel out
    return int(quotient) if quotient.is_Integer else None


def _set_sizes(node: fx.Node, name: str, changes: Mapping[int, int], offset: int) -> None:
    """Write new sizes into a list among an operation's arguments; −1 and sizes that are computed stay."""
    sizes = list(bind(node)[name])
    for axis, size in changes.items():
        if isinstance(sizes[axis - offset], int) and sizes[axis - offset] != -1:
            sizes[axis - offset] = size
    set_argument(node, name, sizes)


def _fake_mode(graph: Graph) -> FakeTensorMode:
    """What the graph's tensors without numbers belong to; a new one where there are none yet."""
    for node in graph.operations.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, FakeTensor):
                return value.fake_mode
    return FakeTensorMode()


def _fake(mode: FakeTensorMode, value: Any) -> Any:
    """A value without its numbers; what is no tensor stays as it is."""
    return pytree.tree_map_only(
        Tensor,
        lambda tensor: (
            tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor.detach(), static_shapes=True)
        ),
        value,
    )


def _run(graph: Graph, node: fx.Node, mode: FakeTensorMode) -> Any:
    """An operation on tensors without numbers."""

    def value(source: fx.Node) -> Any:
        return _fake(mode, graph.constants[str(source.target)] if source.op == "get_attr" else source.meta["val"])

    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), value)
    # A `view` that works in one memory order may not in another, and sizes do not depend on it.
    target = aten.reshape.default if node.target is aten.view.default else node.target
    assert callable(target)
    try:
        # The dispatcher in Python is the one that knows how to keep sizes symbolic.
        with mode, enable_python_dispatcher(), torch.no_grad():
            return target(*args, **kwargs)
    except Exception as error:
        shapes = [list(leaf.shape) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        raise ModelError(
            f"'{node.name}' ({node.target}) does not work on inputs of the shapes {shapes}, which it has after an edit "
            f"of the network: {str(error).strip().splitlines()[0]}. Leave the layers before it as they are."
        ) from error
